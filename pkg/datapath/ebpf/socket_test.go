package ebpf

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// cluster is a world with three backends per family and Services on all of them.
func cluster(t *testing.T) (*world, *Datapath) {
	w := newWorld(t)
	w.start()
	w.serve("127.0.0.2:8080", "127.0.0.3:8080", "127.0.0.4:8080", "[::1]:8081", "[::1]:8082")
	d := w.open(w.options("lbproxy"))
	apply(t, d, full(
		svc("web", port("10.96.0.1:80/TCP", "127.0.0.2:8080", "127.0.0.3:8080"),
			port("[fd00:10:96::1]:80/TCP", "[::1]:8081", "[::1]:8082"),
			port("127.0.0.1:30080/TCP", "127.0.0.2:8080"),
			port("[::1]:30080/TCP", "[::1]:8081")),
		svc("dns", port("10.96.0.10:53/UDP", "127.0.0.2:8080", "127.0.0.3:8080"),
			port("[fd00:10:96::10]:53/UDP", "[::1]:8081", "[::1]:8082"),
			port("127.0.0.1:30053/UDP", "127.0.0.2:8080")),
		svc("empty", port("10.96.0.2:80/TCP"), port("10.96.0.2:53/UDP"),
			port("[fd00:10:96::2]:80/TCP"), port("[fd00:10:96::2]:53/UDP")),
	))
	return w, d
}

// A NodePort on a loopback address is the node's. A pod's loopback address is its own.
func TestPodLoopback(t *testing.T) {
	w := newWorld(t)
	w.startPod()
	w.serve("127.0.0.2:8080")
	d := w.open(w.options("lbproxy"))
	apply(t, d, full(svc("web", port("127.0.0.1:30080/TCP", "127.0.0.2:8080"), port("127.0.0.1:30053/UDP", "127.0.0.2:8080"),
		port("10.96.0.1:80/TCP", "127.0.0.2:8080"))))
	require.Equal(t, "127.0.0.2:8080", w.do(request{Do: "tcp", Addr: "10.96.0.1:80"}).From)
	require.NotEmpty(t, w.do(request{Do: "tcp", Addr: "127.0.0.1:30080"}).Call)
	require.NotEmpty(t, w.do(request{Do: "udp", Addr: "127.0.0.1:30053"}).Call)
}

func TestConnect(t *testing.T) {
	w, _ := cluster(t)
	v4, v6 := []string{"127.0.0.2:8080", "127.0.0.3:8080"}, []string{"[::1]:8081", "[::1]:8082"}
	for _, c := range []struct {
		r    request
		peer string
		want []string
	}{
		{request{Do: "tcp", Addr: "10.96.0.1:80"}, "10.96.0.1:80", v4},
		{request{Do: "tcp", Addr: "10.96.0.1:80", IPv6: true}, "[::ffff:10.96.0.1]:80", v4},
		{request{Do: "tcp", Addr: "[fd00:10:96::1]:80"}, "[fd00:10:96::1]:80", v6},
		{request{Do: "tcp", Addr: "127.0.0.1:30080"}, "127.0.0.1:30080", v4[:1]},
		{request{Do: "tcp", Addr: "[::1]:30080"}, "[::1]:30080", v6[:1]},
		{request{Do: "udp", Addr: "10.96.0.10:53"}, "10.96.0.10:53", v4},
		{request{Do: "udp", Addr: "10.96.0.10:53", IPv6: true}, "[::ffff:10.96.0.10]:53", v4},
		{request{Do: "udp", Addr: "[fd00:10:96::10]:53"}, "[fd00:10:96::10]:53", v6},
		{request{Do: "udp", Addr: "127.0.0.1:30053"}, "127.0.0.1:30053", v4[:1]},
		{request{Do: "tcp", Addr: "127.0.0.4:8080"}, "127.0.0.4:8080", []string{"127.0.0.4:8080"}},
	} {
		t.Run(fmt.Sprintf("%s %s ipv6=%v", c.r.Do, c.r.Addr, c.r.IPv6), func(t *testing.T) {
			seen := map[string]bool{}
			for range 40 {
				a := w.do(c.r)
				require.Empty(t, a.Call)
				require.Equal(t, c.peer, a.Peer)
				require.Contains(t, c.want, a.From)
				if c.r.Do == "udp" {
					require.Equal(t, c.peer, a.Source)
				}
				seen[a.From] = true
			}
			require.Len(t, seen, len(c.want), "every backend is used")
		})
	}
}

func TestSendmsg(t *testing.T) {
	w, _ := cluster(t)
	for _, c := range []struct {
		r      request
		source string
		want   int
	}{
		{request{Do: "send", Addr: "10.96.0.10:53"}, "10.96.0.10:53", 2},
		{request{Do: "send", Addr: "10.96.0.10:53", IPv6: true}, "[::ffff:10.96.0.10]:53", 2},
		{request{Do: "send", Addr: "[fd00:10:96::10]:53"}, "[fd00:10:96::10]:53", 2},
		{request{Do: "send", Addr: "127.0.0.1:30053"}, "127.0.0.1:30053", 1},
		{request{Do: "send", Addr: "127.0.0.4:8080"}, "127.0.0.4:8080", 1},
	} {
		t.Run(fmt.Sprintf("%s ipv6=%v", c.r.Addr, c.r.IPv6), func(t *testing.T) {
			seen := map[string]bool{}
			for range 40 {
				a := w.do(c.r)
				require.Empty(t, a.Call)
				require.Equal(t, c.source, a.Source)
				seen[a.From] = true
			}
			require.Len(t, seen, c.want)
		})
	}
}

func TestEmptySet(t *testing.T) {
	w, d := cluster(t)
	require.Equal(t, kernelAtLeast(t, 5, 18), d.canRefuse, "kernels since 5.18 have bpf_set_retval")
	refused, count := unix.ECONNREFUSED, 6
	if !d.canRefuse {
		refused, count = unix.ENETUNREACH, 0 // left to nftables, as below
	}
	for _, c := range []struct {
		r     request
		errno unix.Errno
	}{
		{request{Do: "tcp", Addr: "10.96.0.2:80"}, refused},
		{request{Do: "tcp", Addr: "10.96.0.2:80", IPv6: true}, refused},
		{request{Do: "tcp", Addr: "[fd00:10:96::2]:80"}, refused},
		{request{Do: "send", Addr: "10.96.0.2:53"}, refused},
		{request{Do: "send", Addr: "10.96.0.2:53", IPv6: true}, refused},
		{request{Do: "send", Addr: "[fd00:10:96::2]:53"}, refused},
		// Left to nftables: here the address is simply not routed.
		{request{Do: "udp", Addr: "10.96.0.2:53"}, unix.ENETUNREACH},
		{request{Do: "udp", Addr: "[fd00:10:96::2]:53"}, unix.ENETUNREACH},
	} {
		a := w.do(c.r)
		require.Equal(t, int(c.errno), a.Errno, "%+v: %+v", c.r, a)
	}
	// The protocol is part of a frontend.
	require.Equal(t, int(unix.ENETUNREACH), w.do(request{Do: "send", Addr: "10.96.0.1:80"}).Errno)

	s, err := ReadStatus(w.options("lbproxy"))
	require.NoError(t, err)
	require.EqualValues(t, count, s.Totals.Refused)
	require.Zero(t, s.Totals.Broken)
}

func kernelAtLeast(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	require.NoError(t, unix.Uname(&u))
	var haveMajor, haveMinor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &haveMajor, &haveMinor)
	require.NoError(t, err)
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}

// TestUDPSticks: an unconnected socket keeps its backend through every change that leaves it in the set.
func TestUDPSticks(t *testing.T) {
	w, d := cluster(t)
	send := func(addr string) answer {
		a := w.do(request{Do: "send", Addr: addr, Socket: "s"})
		require.Empty(t, a.Call)
		require.Equal(t, addr, a.Source)
		return a
	}
	set := func(addrs ...string) {
		apply(t, d, changed(svc("dns", port("10.96.0.10:53/UDP", addrs...))))
	}
	first := send("10.96.0.10:53").From
	for range 30 {
		require.Equal(t, first, send("10.96.0.10:53").From)
	}
	set("127.0.0.2:8080", "127.0.0.3:8080", "127.0.0.4:8080")
	for range 30 {
		require.Equal(t, first, send("10.96.0.10:53").From)
	}
	// Many before it and after it: it is found by search.
	many := []string{first}
	for i := range 500 {
		many = append(many, fmt.Sprintf("126.0.%d.%d:80", i/250, i%250), fmt.Sprintf("127.%d.0.1:%d", i%3, 2000+i))
	}
	set(many...)
	for range 30 {
		require.Equal(t, first, send("10.96.0.10:53").From)
	}
	set("127.0.0.4:8080")
	require.Equal(t, "127.0.0.4:8080", send("10.96.0.10:53").From)
	set(first, "127.0.0.4:8080")
	for range 30 {
		require.Equal(t, "127.0.0.4:8080", send("10.96.0.10:53").From)
	}
}

// TestUDPManyFrontends: one socket, more frontends than it can remember; each answer shows the frontend asked.
func TestUDPManyFrontends(t *testing.T) {
	w, d := cluster(t)
	var ports []datapath.Port
	for i := range 7 {
		ports = append(ports, port(fmt.Sprintf("10.96.1.%d:53/UDP", i), "127.0.0.2:8080", "127.0.0.3:8080"))
	}
	apply(t, d, changed(svc("many", ports...)))
	for i := range 100 {
		addr := fmt.Sprintf("10.96.1.%d:53", i*i%7)
		a := w.do(request{Do: "send", Addr: addr, Socket: "s"})
		require.Empty(t, a.Call)
		require.Equal(t, addr, a.Source)
	}
	// A backend named directly answers for itself, although flows lead to it.
	for range 3 {
		require.Equal(t, "127.0.0.2:8080", w.do(request{Do: "send", Addr: "127.0.0.2:8080", Socket: "s"}).Source)
		require.Equal(t, "127.0.0.3:8080", w.do(request{Do: "send", Addr: "127.0.0.3:8080", Socket: "s"}).Source)
	}
}

// TestSocketForgets: what a socket was connected to does not outlive the next connect or disconnect.
func TestSocketForgets(t *testing.T) {
	w, d := cluster(t)
	apply(t, d, changed(svc("dns", port("10.96.0.10:53/UDP", "127.0.0.2:8080"))))
	vip := request{Do: "udp", Addr: "10.96.0.10:53", Socket: "s"}
	direct := request{Do: "udp", Addr: "127.0.0.2:8080", Socket: "s"}

	require.Equal(t, "10.96.0.10:53", w.do(vip).Source)
	a := w.do(direct)
	require.Equal(t, "127.0.0.2:8080", a.Source)
	require.Equal(t, "127.0.0.2:8080", a.Peer)

	require.Equal(t, "10.96.0.10:53", w.do(vip).Source)
	require.Empty(t, w.do(request{Do: "disconnect", Socket: "s"}).Call)
	require.Equal(t, "127.0.0.2:8080", w.do(request{Do: "send", Addr: "127.0.0.2:8080", Socket: "s"}).Source)
	require.Equal(t, "10.96.0.10:53", w.do(request{Do: "send", Addr: "10.96.0.10:53", Socket: "s"}).Source)
}

// TestConnectedSendto: a connected socket that names its frontend reaches the backend it is connected to, the
// only one whose answers it gets.
func TestConnectedSendto(t *testing.T) {
	w, _ := cluster(t)
	first := w.do(request{Do: "udp", Addr: "10.96.0.10:53", Socket: "s"})
	require.Empty(t, first.Call)
	for range 20 {
		a := w.do(request{Do: "send", Addr: "10.96.0.10:53", Socket: "s"})
		require.Empty(t, a.Call)
		require.Equal(t, first.From, a.From)
		require.Equal(t, "10.96.0.10:53", a.Source)
	}
}
