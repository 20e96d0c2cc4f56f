package demo

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/test/lab"
)

const (
	// rounds are the connections to a frontend for each client and family.
	rounds = 40
	// enough failures of one kind of connection say as much as many, and each may take until the timeout.
	enough  = 3
	timeout = time.Second
)

// connectAll dials every frontend from every kind of client.
func (s *stage) connectAll(ctx context.Context) ([]Cell, error) {
	var cells []Cell
	for i := range frontends {
		f := &frontends[i]
		for _, client := range f.clients() {
			e := expect(f, client, s.now, s.sockets)
			var samples []sample
			for _, ipv6 := range []bool{false, true} {
				sample, err := s.connect(ctx, f, client, ipv6, e)
				if err != nil {
					return nil, err
				}
				samples = append(samples, sample)
			}
			cells = append(cells, judge(f, client, samples, e))
		}
	}
	return cells, nil
}

// connect dials a frontend and its backends directly in turn, so that both meet the same weather.
func (s *stage) connect(ctx context.Context, f *frontend, client string, ipv6 bool, e expectation) (sample, error) {
	result := sample{ipv6: ipv6, direct: map[string][]time.Duration{}}
	if err := s.warmUp(f, client, ipv6, e); err != nil {
		return result, err
	}
	failures := 0
	for i := 0; i < rounds && failures < enough; i++ {
		if err := ctx.Err(); err != nil {
			return result, err
		}
		// Half of the UDP sockets are connected: the kernel treats the two kinds differently.
		r := request(f, ipv6)
		r.Connected = i%2 == 0
		dialDirect := func() error { return s.dialDirect(&result, client, r, e, i) }
		dialFrontend := func() error {
			a, err := s.hosts[client].Dial(r)
			result.answers = append(result.answers, a)
			if check(a, e) != "" {
				failures++
			}
			return err
		}
		first, second := dialDirect, dialFrontend
		if i%4 >= 2 {
			first, second = second, first
		}
		if err := first(); err != nil {
			return result, err
		}
		if err := second(); err != nil {
			return result, err
		}
	}
	return result, nil
}

func request(f *frontend, ipv6 bool) lab.Request {
	return lab.Request{Network: f.network, Addr: f.addr(ipv6), Timeout: timeout}
}

// warmUp dials the backends once: the first packet on a way asks for the neighbour's address.
func (s *stage) warmUp(f *frontend, client string, ipv6 bool, e expectation) error {
	for i := range e.backends {
		if err := s.dialDirect(&sample{direct: map[string][]time.Duration{}}, client, request(f, ipv6), e, i); err != nil {
			return err
		}
	}
	return nil
}

// dialDirect dials one of the expected backends at its own address.
func (s *stage) dialDirect(result *sample, client string, r lab.Request, e expectation, i int) error {
	if len(e.backends) == 0 {
		return nil
	}
	backend := e.backends[i%len(e.backends)]
	r.Addr = directAddr(backend, r.Addr.Addr().Is6())
	a, err := s.hosts[client].Dial(r)
	if err == nil && a.Backend != backend {
		// Nothing of this goes through a Service: the laboratory is broken.
		err = fmt.Errorf("dial pod %s at %s from %s: answered %q: %s", backend, r.Addr, client, a.Backend, a.Error)
	}
	if err != nil {
		return err
	}
	result.direct[backend] = append(result.direct[backend], a.Connect)
	return nil
}

// directAddr returns the address of a backend's own.
func directAddr(backend string, ipv6 bool) netip.AddrPort {
	for _, p := range pods {
		if p.name == backend {
			return netip.AddrPortFrom(podAddr(backend, ipv6), targets[p.service].port)
		}
	}
	return netip.AddrPort{}
}

// sweep dials every frontend once from every client over both families, and says what was wrong.
func (s *stage) sweep(ctx context.Context) ([]string, error) {
	var problems []string
	for i := range frontends {
		f := &frontends[i]
		for _, client := range f.clients() {
			e := expect(f, client, s.now, s.sockets)
			for _, ipv6 := range []bool{false, true} {
				a, err := s.hosts[client].Dial(request(f, ipv6))
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					return nil, err
				}
				if fault := check(a, e); fault != "" {
					problems = append(problems, fmt.Sprintf("%s to %s %s: %s", client, f.addr(ipv6), f.network, fault))
				}
			}
		}
	}
	return problems, nil
}

// ready waits until every frontend works.
func (s *stage) ready(ctx context.Context) error {
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		problems, err := s.sweep(ctx)
		if err != nil || len(problems) == 0 {
			return err
		}
		if time.Since(begin) > patience {
			// The table shows what does not work.
			return nil
		}
	}
}
