package ebpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// request is what a test asks the worker to do.
type request struct {
	Do     string // serve, tcp, udp, send, disconnect, storm, stop
	Addr   string
	Socket string // names a UDP socket that is kept
	IPv6   bool   // an AF_INET6 socket even for IPv4
}

// answer is what the worker saw.
type answer struct {
	From    string         // who answered, by its own words
	Source  string         // where recvfrom said it came from
	Peer    string         // what getpeername said
	Errno   int            // of the first call that failed
	Call    string         // that call
	Done    int            // connects of a storm
	Failed  []string       // failures of a storm
	Servers map[string]int // who answered a storm
}

// worker lives in a network namespace and a cgroup of its own and makes sockets for a test.
type worker struct {
	sockets map[string]int
	storm   *storm
}

func workerMain() {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "set lo up:", err)
		os.Exit(1)
	}
	w := &worker{sockets: map[string]int{}}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var r request
		if in.Decode(&r) != nil {
			os.Exit(0)
		}
		var a answer
		if err := w.do(r, &a); err != nil {
			a.Call = err.Error()
			var errno unix.Errno
			if errors.As(err, &errno) {
				a.Errno = int(errno)
			} else {
				a.Errno = -1
			}
		}
		_ = out.Encode(a)
	}
}

func (w *worker) do(r request, a *answer) error {
	switch r.Do {
	case "serve":
		return serve(r.Addr)
	case "tcp":
		return dialTCP(netip.MustParseAddrPort(r.Addr), r.IPv6, a)
	case "udp":
		return w.connectUDP(r, a)
	case "send":
		return w.sendUDP(r, a)
	case "disconnect":
		raw := make([]byte, unix.SizeofSockaddrInet4) // AF_UNSPEC
		return sysConnect(w.sockets[r.Socket], raw)
	case "storm":
		w.storm = startStorm(netip.MustParseAddrPort(r.Addr))
		return nil
	case "stop":
		w.storm.finish(a)
		return nil
	}
	return fmt.Errorf("unknown request %q", r.Do)
}

// serve answers TCP and UDP with the address it listens on.
func serve(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	p, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = c.Write([]byte(addr))
				c.Close()
			}()
		}
	}()
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo([]byte(addr), from)
		}
	}()
	return nil
}

func newSocket(a netip.AddrPort, ipv6 bool, kind int) (int, unix.Sockaddr, error) {
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if a.Addr().Is4() && !ipv6 {
		sa = &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	} else {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("socket: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(2 * time.Second))
	return fd, sa, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}

func dialTCP(to netip.AddrPort, ipv6 bool, a *answer) error {
	fd, sa, err := newSocket(to, ipv6, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sa); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return fmt.Errorf("getpeername: %w", err)
	}
	a.Peer = text(peer)
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	a.From = string(buf[:n])
	return nil
}

// connectUDP connects a kept or a new socket and exchanges one datagram.
func (w *worker) connectUDP(r request, a *answer) error {
	fd, sa, done, err := w.socket(r)
	if err != nil {
		return err
	}
	defer done()
	if err := unix.Connect(fd, sa); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return fmt.Errorf("getpeername: %w", err)
	}
	a.Peer = text(peer)
	if _, err := unix.Write(fd, []byte("?")); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return receive(fd, a)
}

// sendUDP names the address in sendto, on a kept or a new socket.
func (w *worker) sendUDP(r request, a *answer) error {
	fd, sa, done, err := w.socket(r)
	if err != nil {
		return err
	}
	defer done()
	if err := unix.Sendto(fd, []byte("?"), 0, sa); err != nil {
		return fmt.Errorf("sendto: %w", err)
	}
	return receive(fd, a)
}

func (w *worker) socket(r request) (fd int, sa unix.Sockaddr, done func(), err error) {
	fd, sa, err = newSocket(netip.MustParseAddrPort(r.Addr), r.IPv6, unix.SOCK_DGRAM)
	if err != nil {
		return -1, nil, nil, err
	}
	if r.Socket == "" {
		return fd, sa, func() { unix.Close(fd) }, nil
	}
	if kept, ok := w.sockets[r.Socket]; ok {
		unix.Close(fd)
		return kept, sa, func() {}, nil
	}
	w.sockets[r.Socket] = fd
	return fd, sa, func() {}, nil
}

func receive(fd int, a *answer) error {
	buf := make([]byte, 100)
	n, from, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return fmt.Errorf("recvfrom: %w", err)
	}
	a.From, a.Source = string(buf[:n]), text(from)
	return nil
}

func text(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	}
	return fmt.Sprintf("%T", sa)
}

// storm connects as fast as it can until it is stopped.
type storm struct {
	stop chan struct{}
	done sync.WaitGroup
	mu   sync.Mutex
	answer
}

func startStorm(to netip.AddrPort) *storm {
	s := &storm{stop: make(chan struct{}), answer: answer{Servers: map[string]int{}}}
	for range 4 {
		s.done.Go(func() {
			for {
				select {
				case <-s.stop:
					return
				default:
				}
				var a answer
				err := dialTCP(to, false, &a)
				s.mu.Lock()
				s.Done++
				if err != nil {
					s.Failed = append(s.Failed, err.Error())
				} else {
					s.Servers[a.From]++
				}
				s.mu.Unlock()
			}
		})
	}
	return s
}

func (s *storm) finish(a *answer) {
	close(s.stop)
	s.done.Wait()
	*a = s.answer
}
