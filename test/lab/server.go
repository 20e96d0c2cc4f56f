package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (w *worker) startServer(s server) (struct{}, error) {
	if s.Name == "" || strings.ContainsAny(s.Name, " \n") {
		return struct{}{}, fmt.Errorf("name %q is empty or has spaces", s.Name)
	}
	closer, err := listen(s)
	if err != nil {
		return struct{}{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s.Name = ""
	w.servers[s] = closer
	return struct{}{}, nil
}

func (w *worker) stopServer(s server) (struct{}, error) {
	w.mu.Lock()
	closer, ok := w.servers[s]
	delete(w.servers, s)
	w.mu.Unlock()
	if !ok {
		return struct{}{}, errors.New("no such server")
	}
	return struct{}{}, closer.Close()
}

func listen(s server) (io.Closer, error) {
	family := "4"
	if s.Addr.Addr().Is6() {
		family = "6"
	}
	switch s.Network {
	case "tcp":
		l, err := net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(s.Addr))
		if err != nil {
			return nil, err
		}
		t := &tcpServer{name: s.Name, listener: l, conns: map[net.Conn]bool{}}
		go t.accept()
		return t, nil
	case "udp":
		c, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(s.Addr))
		if err != nil {
			return nil, err
		}
		if err := wantDestination(c, s.Addr.Addr().Is6()); err != nil {
			c.Close()
			return nil, err
		}
		go answerDatagrams(c, s.Name)
		return c, nil
	}
	return nil, fmt.Errorf("unknown network %q", s.Network)
}

// answer is the line a server answers with.
func answer(name string, peer netip.AddrPort) []byte {
	return fmt.Appendf(nil, "%s %s\n", name, netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()))
}

type tcpServer struct {
	name     string
	listener *net.TCPListener

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

func (t *tcpServer) accept() {
	for {
		c, err := t.listener.AcceptTCP()
		if err != nil {
			return
		}
		if !t.add(c) {
			c.Close()
			return
		}
		go t.serve(c)
	}
}

func (t *tcpServer) add(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.conns[c] = true
	return true
}

// serve answers line by line until the client closes: a server that closed first could break a client's
// connect that has not returned yet.
func (t *tcpServer) serve(c *net.TCPConn) {
	defer func() {
		c.Close()
		t.mu.Lock()
		delete(t.conns, c)
		t.mu.Unlock()
	}()
	line := answer(t.name, c.RemoteAddr().(*net.TCPAddr).AddrPort())
	r := bufio.NewReaderSize(c, 512)
	for {
		_, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return
		}
		if _, err := c.Write(line); err != nil {
			return
		}
	}
}

// Close ends the listener and its connections.
func (t *tcpServer) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for c := range t.conns {
		c.Close()
	}
	return t.listener.Close()
}

// wantDestination makes the socket tell which address each datagram was sent to.
func wantDestination(c *net.UDPConn, ipv6 bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		if ipv6 {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	return errors.Join(err, optErr)
}

// answerDatagrams answers from the address the datagram was sent to, which on a wildcard socket would
// otherwise be the one the route back prefers.
func answerDatagrams(c *net.UDPConn, name string) {
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for {
		_, n, _, peer, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		// A client that is gone is none of the server's business.
		_, _, _ = c.WriteMsgUDPAddrPort(answer(name, peer), sourceControl(oob[:n]), peer)
	}
}

// sourceControl turns the control message that says where a datagram was sent to into one that sends from there.
func sourceControl(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			in := (*unix.Inet4Pktinfo)(unsafe.Pointer(&m.Data[0]))
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: in.Addr})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			in := (*unix.Inet6Pktinfo)(unsafe.Pointer(&m.Data[0]))
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: in.Addr})
		}
	}
	return nil
}
