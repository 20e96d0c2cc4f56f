package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const defaultTimeout = 2 * time.Second

// Sockets are raw and blocking: connect() is then measured without the runtime's poller, and the SYN, its way through
// the node and the SYN-ACK all happen inside of it.

// step is an error of one step of a connection.
type step struct {
	name  string
	errno syscall.Errno
}

// Error names the step.
func (s *step) Error() string { return s.name + ": " + s.errno.Error() }

// failed returns nil or the error of a step. The kernel tells of an elapsed timeout in two ways; here it is always ETIMEDOUT.
func failed(name string, err error) error {
	var errno syscall.Errno
	if err == nil || !errors.As(err, &errno) {
		return err
	}
	if errno == unix.EAGAIN || errno == unix.EINPROGRESS {
		errno = unix.ETIMEDOUT
	}
	return &step{name, errno}
}

func dialTimes(r Request, n int) []Answer {
	answers := make([]Answer, 0, n)
	for range n {
		answers = append(answers, dial(r))
	}
	return answers
}

func dial(r Request) Answer {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var a Answer
	s, err := openSocket(r)
	if err == nil {
		defer s.close()
		err = s.exchange(&a)
	}
	var st *step
	if errors.As(err, &st) {
		a.Errno = st.errno
	}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

// socket is the client's end of one Request.
type socket struct {
	fd      int
	request Request
	to      unix.Sockaddr
	line    []byte
}

func openSocket(r Request) (*socket, error) {
	kind := unix.SOCK_STREAM
	if r.Network == "udp" {
		kind = unix.SOCK_DGRAM
	} else if r.Network != "tcp" {
		return nil, fmt.Errorf("unknown network %q", r.Network)
	}
	if !r.Addr.IsValid() || r.MappedV4 && !r.Addr.Addr().Is4() {
		return nil, fmt.Errorf("invalid address %s", r.Addr)
	}
	family := unix.AF_INET
	if r.Addr.Addr().Is6() || r.MappedV4 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, failed("socket", err)
	}
	s := &socket{fd: fd, request: r, to: sockaddr(r.Addr, r.MappedV4), line: []byte(r.Payload + "\n")}
	if err := s.setOptions(family, kind); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) setOptions(family, kind int) error {
	timeout := s.request.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	tv := unix.NsecToTimeval(int64(timeout))
	errs := []error{
		unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
	}
	if kind == unix.SOCK_STREAM {
		// Close by reset: thousands of connections would otherwise use up the ports in TIME_WAIT.
		errs = append(errs, unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	} else {
		// Without it, ICMP errors do not reach an unconnected socket.
		errs = append(errs, unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
		if family == unix.AF_INET6 {
			errs = append(errs, unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("set socket options: %w", err)
	}
	if !s.request.Source.IsValid() {
		return nil
	}
	return failed("bind", unix.Bind(s.fd, sockaddr(netip.AddrPortFrom(s.request.Source, 0), s.request.MappedV4)))
}

func (s *socket) close() { _ = unix.Close(s.fd) }

// exchange connects and sends one request.
func (s *socket) exchange(a *Answer) error {
	start := time.Now()
	if err := s.connect(); err != nil {
		return err
	}
	tcp := s.request.Network == "tcp"
	if tcp {
		a.Connect = time.Since(start)
	}
	if tcp || s.request.Connected {
		peer, err := unix.Getpeername(s.fd)
		if err != nil {
			return failed("getpeername", err)
		}
		a.Peer = addrPort(peer)
	}
	from, err := s.ask(a)
	if err != nil {
		return err
	}
	if !tcp {
		a.Connect = time.Since(start)
	}
	if !a.Peer.IsValid() {
		a.Peer = from
	} else if !tcp && from != a.Peer {
		return fmt.Errorf("recvfrom: answer comes from %s, getpeername says %s", from, a.Peer)
	}
	return nil
}

func (s *socket) connect() error {
	if s.request.Network == "udp" && !s.request.Connected {
		return nil
	}
	err := unix.Connect(s.fd, s.to)
	if errors.Is(err, unix.EINTR) {
		err = s.finishConnect()
	}
	return failed("connect", err)
}

// finishConnect waits for a connection a signal has kept connect() from waiting for.
func (s *socket) finishConnect() error {
	timeout := s.request.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
	for deadline := time.Now().Add(timeout); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		}
		errno, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = syscall.Errno(errno)
		}
		return err
	}
}

// ask sends one request and reads the answer. It returns the sender of a datagram.
func (s *socket) ask(a *Answer) (from netip.AddrPort, err error) {
	var to unix.Sockaddr
	if s.request.Network == "udp" && !s.request.Connected {
		to = s.to
	}
	err = retry(func() error { return unix.Sendto(s.fd, s.line, unix.MSG_NOSIGNAL, to) })
	if err != nil {
		return from, failed("send", err)
	}
	var buf [512]byte
	for n := 0; n < len(buf); {
		var got int
		var sender unix.Sockaddr
		err := retry(func() error {
			var err error
			got, sender, err = unix.Recvfrom(s.fd, buf[n:], 0)
			return err
		})
		if err != nil {
			return from, failed("recv", err)
		}
		if got == 0 {
			return from, &step{"recv", unix.ECONNRESET} // an answer has not come, and will not
		}
		from = addrPort(sender)
		if n += got; buf[n-1] == '\n' {
			return from, parseAnswer(string(buf[:n-1]), a)
		}
	}
	return from, fmt.Errorf("recv: no end of line in %q", buf)
}

func parseAnswer(line string, a *Answer) error {
	name, source, _ := strings.Cut(line, " ")
	seen, err := netip.ParseAddrPort(source)
	if err != nil {
		return fmt.Errorf("parse answer %q: %w", line, err)
	}
	a.Backend, a.SeenSource = name, seen
	return nil
}

// retry repeats what a signal interrupted: with a timeout set, the kernel does not.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func sockaddr(a netip.AddrPort, mapped bool) unix.Sockaddr {
	if a.Addr().Is4() && !mapped {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// addrPort returns the address of a socket address, an IPv4 address being one also if it came mapped.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
