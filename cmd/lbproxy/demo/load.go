package demo

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/test/lab"
)

// drained is the Service that loses all its backends for a while. The load leaves it alone: it has to be refused.
const drained = "api"

// loadTargets returns what has to work all the time, in both families.
func loadTargets(network string) []netip.AddrPort {
	var list []netip.AddrPort
	for i := range frontends {
		f := &frontends[i]
		if f.network == network && !f.loopback && f.service != drained && targets[f.service].port != 0 {
			list = append(list, f.v4, f.v6)
		}
	}
	return list
}

// startLoads makes every client connect anew all the time and hold a connection to every target.
func (s *stage) startLoads() error {
	for _, client := range clients {
		for _, r := range []lab.LoadRequest{{Network: "tcp", Workers: 2, Rate: 80}, {Network: "udp", Workers: 1, Rate: 40}} {
			r.Targets, r.Timeout, r.Interval = loadTargets(r.Network), timeout, 50*time.Millisecond
			r.Held = len(r.Targets)
			l, err := s.hosts[client].Load(r)
			if err != nil {
				return err
			}
			s.loads = append(s.loads, l)
		}
	}
	return nil
}

// readLoads returns the counts of every load so far.
func (s *stage) readLoads() ([]lab.LoadResult, error) {
	var list []lab.LoadResult
	for _, l := range s.loads {
		r, err := l.Read()
		if err != nil {
			return nil, fmt.Errorf("read load: %w", err)
		}
		list = append(list, r)
	}
	return list, nil
}

// addLoads adds to a step what the loads counted meanwhile.
func addLoads(step *StepResult, before, after []lab.LoadResult) {
	for i, a := range after {
		b := before[i]
		step.New += a.Connects - b.Connects
		step.Held += a.Requests - b.Requests
		failed := a.Failures + a.Resets - b.Failures - b.Resets
		step.Failed += failed
		// The laboratory keeps the first errors only.
		step.Problems = append(step.Problems, a.Errors[len(b.Errors):]...)
		if more := failed - (len(a.Errors) - len(b.Errors)); more > 0 {
			step.Problems = append(step.Problems, fmt.Sprintf("and %d more", more))
		}
	}
}
