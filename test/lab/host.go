package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"sync"
)

var errClosed = errors.New("the host is gone")

// Host is a machine or a pod. Its methods may be called concurrently.
type Host struct {
	Name         string
	Addr4, Addr6 netip.Addr

	ns      *namespace
	node    *Host  // of a pod
	cgroup  string // directory
	spawner *spawner

	mu        sync.Mutex
	worker    *client
	processes []*Process
	closed    bool
}

// Serve starts a server that answers every line of a TCP connection or every UDP datagram with its name and the
// address it saw the peer at. The network is tcp or udp; addr is an address and port of the host, possibly 0.0.0.0 or [::].
// It returns when the server takes connections.
func (h *Host) Serve(network, addr, name string) error {
	at, err := netip.ParseAddrPort(addr)
	if err == nil {
		err = h.call(opServe, server{Network: network, Addr: at, Name: name}, nil)
	}
	if err != nil {
		return fmt.Errorf("serve %s on %s at %s %s: %w", name, h.Name, network, addr, err)
	}
	return nil
}

// StopServe ends a server and its connections.
func (h *Host) StopServe(network, addr string) error {
	at, err := netip.ParseAddrPort(addr)
	if err == nil {
		err = h.call(opStopServe, server{Network: network, Addr: at}, nil)
	}
	if err != nil {
		return fmt.Errorf("stop server on %s at %s %s: %w", h.Name, network, addr, err)
	}
	return nil
}

// Dial connects, sends one request and returns the answer. It returns an error only if the laboratory fails.
func (h *Host) Dial(r Request) (Answer, error) {
	answers, err := h.DialN(r, 1)
	if err != nil {
		return Answer{}, err
	}
	return answers[0], nil
}

// DialN dials n times, one after the other, each time with a new socket.
func (h *Host) DialN(r Request, n int) ([]Answer, error) {
	var answers []Answer
	if err := h.call(opDial, dialArgs{Request: r, Times: n}, &answers); err != nil {
		return nil, fmt.Errorf("dial %s from %s: %w", r.Addr, h.Name, err)
	}
	return answers, nil
}

// Load begins to make connections and goes on until it is stopped.
func (h *Host) Load(r LoadRequest) (*Load, error) {
	l := &Load{host: h}
	if err := h.call(opLoad, r, &l.id); err != nil {
		return nil, fmt.Errorf("start load on %s: %w", h.Name, err)
	}
	return l, nil
}

// Start runs a program inside the host's network namespace and cgroup. It shares all else with this process: files,
// mounts, environment. It is killed with the host, at the latest.
func (h *Host) Start(program string, args ...string) (*Process, error) {
	p, err := h.start(exec.Command(program, args...))
	if err != nil {
		return nil, fmt.Errorf("run program on %s: %w", h.Name, err)
	}
	return p, nil
}

func (h *Host) start(cmd *exec.Cmd) (*Process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errClosed
	}
	p, err := h.spawner.start(cmd, h.ns, h.cgroup)
	if err != nil {
		return nil, err
	}
	h.processes = append(h.processes, p)
	return p, nil
}

// Do runs fn on the calling goroutine while its thread is inside the host's network namespace. Goroutines fn starts
// are not.
func (h *Host) Do(fn func() error) error {
	h.mu.Lock()
	closed := h.closed
	h.mu.Unlock()
	if closed {
		return fmt.Errorf("enter %s: %w", h.Name, errClosed)
	}
	return h.ns.do(fn)
}

// AddAddr adds an address to an interface of the host: lo or [Uplink]. The host's own connections keep their source.
func (h *Host) AddAddr(link string, p netip.Prefix) error {
	if err := h.ns.addAddr(link, p, false); err != nil {
		return fmt.Errorf("configure %s: %w", h.Name, err)
	}
	return nil
}

// Addr returns the host's address in one family.
func (h *Host) Addr(ipv6 bool) netip.Addr {
	if ipv6 {
		return h.Addr6
	}
	return h.Addr4
}

// call asks the host's worker, which is started when it is needed first.
func (h *Host) call(op string, args, result any) error {
	c, err := h.startWorker()
	if err != nil {
		return err
	}
	return c.call(op, args, result)
}

func (h *Host) startWorker() (*client, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errClosed
	}
	if h.worker == nil {
		c, err := newClient(h.spawner, h.ns, h.cgroup, h.Name)
		if err != nil {
			return nil, err
		}
		h.worker = c
	}
	return h.worker, nil
}

// close ends everything in the host and gives its namespace up.
func (h *Host) close() error {
	h.mu.Lock()
	closed := h.closed
	h.closed = true
	processes, worker := h.processes, h.worker
	h.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	for _, p := range processes {
		errs = append(errs, p.Kill())
	}
	if worker != nil {
		errs = append(errs, worker.close())
	}
	h.ns.close()
	return errors.Join(errs...)
}
