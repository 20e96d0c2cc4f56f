package lab_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/test/lab"
	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// town is a world with two pods on node and one on node2.
type town struct {
	*lab.World
	pod, neighbor, remote *lab.Host
}

func newTown(t *testing.T) town {
	t.Helper()
	w := town{World: labtest.Start(t)}
	w.pod = addPod(t, w.World, w.Node, "pod")
	w.neighbor = addPod(t, w.World, w.Node, "neighbor")
	w.remote = addPod(t, w.World, w.Node2, "remote")
	return w
}

func addPod(t *testing.T, w *lab.World, node *lab.Host, name string) *lab.Host {
	t.Helper()
	pod, err := w.AddPod(node, name)
	require.NoError(t, err)
	return pod
}

func TestEveryoneReachesEveryone(t *testing.T) {
	w := newTown(t)
	hosts := []*lab.Host{w.pod, w.neighbor, w.remote, w.Node, w.Node2, w.Outside}
	for _, h := range hosts {
		for _, network := range []string{"tcp", "udp"} {
			require.NoError(t, h.Serve(network, "0.0.0.0:80", h.Name))
			require.NoError(t, h.Serve(network, "[::]:80", h.Name))
		}
	}
	requests := []lab.Request{
		{Network: "tcp"},
		{Network: "tcp", MappedV4: true},
		{Network: "udp"},
		{Network: "udp", Connected: true},
		{Network: "udp", MappedV4: true},
	}
	for _, from := range hosts {
		for _, to := range hosts {
			for _, ipv6 := range []bool{false, true} {
				for _, r := range requests {
					if r.MappedV4 && ipv6 {
						continue
					}
					r.Addr, r.Source = netip.AddrPortFrom(to.Addr(ipv6), 80), from.Addr(ipv6)
					a, err := from.Dial(r)
					require.NoError(t, err)
					require.Empty(t, a.Error, "%s to %s: %+v", from.Name, to.Name, r)
					require.Equal(t, to.Name, a.Backend)
					require.Equal(t, from.Addr(ipv6), a.SeenSource.Addr())
					require.Equal(t, r.Addr, a.Peer)
					require.Positive(t, a.Connect)
				}
			}
		}
	}
}

// The wildcard server of a host with two addresses has to answer from the one that was asked.
func TestAnswerComesFromTheAddressAsked(t *testing.T) {
	w := newTown(t)
	for _, address := range []string{"172.18.0.50/24", "fd00:172:18::50/64"} {
		p := netip.MustParsePrefix(address)
		require.NoError(t, w.Node.AddAddr(lab.Uplink, p))
		wildcard := "0.0.0.0:53"
		if p.Addr().Is6() {
			wildcard = "[::]:53"
		}
		require.NoError(t, w.Node.Serve("udp", wildcard, "node"))
		for _, at := range []netip.Addr{p.Addr(), w.Node.Addr(p.Addr().Is6())} {
			a, err := w.Outside.Dial(lab.Request{Network: "udp", Addr: netip.AddrPortFrom(at, 53)})
			require.NoError(t, err)
			require.Empty(t, a.Error)
			require.Equal(t, at, a.Peer.Addr())
		}
	}
}

// Three answers of the network must never be taken for each other.
func TestErrorsAreTold(t *testing.T) {
	w := newTown(t)
	nobody := map[bool]netip.Addr{false: netip.MustParseAddr("10.96.0.1"), true: netip.MustParseAddr("fd00:10:96::1")}
	silent := map[bool]netip.Addr{false: netip.MustParseAddr("10.244.1.250"), true: netip.MustParseAddr("fd00:10:244:1::250")}
	require.NoError(t, w.Node.Do(func() error { return addBlackhole(silent[false], silent[true]) }))
	for _, ipv6 := range []bool{false, true} {
		for _, r := range []lab.Request{{Network: "tcp"}, {Network: "udp"}, {Network: "udp", Connected: true}} {
			name := fmt.Sprintf("%s connected=%v ipv6=%v", r.Network, r.Connected, ipv6)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r.Addr = netip.AddrPortFrom(w.remote.Addr(ipv6), 4)
				requireErrno(t, w.pod, r, syscall.ECONNREFUSED)
				r.Addr = netip.AddrPortFrom(nobody[ipv6], 80)
				r.Timeout = 4 * time.Second
				requireErrno(t, w.pod, r, syscall.ENETUNREACH)
				r.Addr = netip.AddrPortFrom(silent[ipv6], 80)
				r.Timeout = 300 * time.Millisecond
				requireErrno(t, w.pod, r, syscall.ETIMEDOUT)
			})
		}
	}
}

func requireErrno(t *testing.T, from *lab.Host, r lab.Request, want syscall.Errno) {
	t.Helper()
	a, err := from.Dial(r)
	require.NoError(t, err)
	require.Equal(t, want, a.Errno, "%s: %+v", r.Addr, a)
	require.NotEmpty(t, a.Error)
	require.Empty(t, a.Backend)
}

// What outside sends to a virtual address arrives at node; what pods send there reaches the router.
func TestVirtualAddressesLeadToNode(t *testing.T) {
	w := newTown(t)
	for i, vip := range []string{"198.51.100.7/32", "203.0.113.7/32", "10.96.0.7/32", "2001:db8:51::7/128", "2001:db8:113::7/128", "fd00:10:96::7/128"} {
		p := netip.MustParsePrefix(vip)
		require.NoError(t, w.Node.AddAddr("lo", p))
		at := netip.AddrPortFrom(p.Addr(), uint16(8000+i))
		require.NoError(t, w.Node.Serve("tcp", at.String(), "vip"))
		a, err := w.Outside.Dial(lab.Request{Network: "tcp", Addr: at})
		require.NoError(t, err)
		require.Equal(t, "vip", a.Backend, a.Error)
		require.Equal(t, w.Outside.Addr(p.Addr().Is6()), a.SeenSource.Addr())
		// By UDP, because a connecting TCP socket takes an ICMP error that comes at once for transient, and tries again.
		a, err = w.Node2.Dial(lab.Request{Network: "udp", Addr: at})
		require.NoError(t, err)
		require.True(t, a.Unreachable(), "node2 to %s: %+v", at, a)
	}
}

func TestStoppedServerRefuses(t *testing.T) {
	w := newTown(t)
	for _, network := range []string{"tcp", "udp"} {
		r := lab.Request{Network: network, Connected: true, Addr: netip.AddrPortFrom(w.remote.Addr4, 80)}
		require.NoError(t, w.remote.Serve(network, r.Addr.String(), "remote"))
		answers, err := w.pod.DialN(r, 5)
		require.NoError(t, err)
		require.Len(t, answers, 5)
		require.Equal(t, "remote", answers[4].Backend)
		require.NoError(t, w.remote.StopServe(network, r.Addr.String()))
		requireErrno(t, w.pod, r, syscall.ECONNREFUSED)
		require.Error(t, w.remote.StopServe(network, r.Addr.String()))
	}
}

func TestServeReportsWhy(t *testing.T) {
	w := newTown(t)
	require.ErrorContains(t, w.pod.Serve("tcp", "192.0.2.1:80", "pod"), "cannot assign requested address")
	require.ErrorContains(t, w.pod.Serve("sctp", "0.0.0.0:80", "pod"), `unknown network "sctp"`)
	require.ErrorContains(t, w.pod.Serve("tcp", "0.0.0.0:80", "two words"), "has spaces")
}

func TestLoadCountsWhatBreaks(t *testing.T) {
	w := newTown(t)
	for _, network := range []string{"tcp", "udp"} {
		at := netip.AddrPortFrom(w.remote.Addr6, 80)
		require.NoError(t, w.remote.Serve(network, at.String(), "remote"))
		l, err := w.pod.Load(lab.LoadRequest{
			Network: network, Targets: []netip.AddrPort{at}, Workers: 2, Rate: 200, Held: 3, Timeout: time.Second,
		})
		require.NoError(t, err)
		requireLoad(t, l, func(r lab.LoadResult) bool { return r.Connects >= 20 && r.Requests >= 20 })
		healthy, err := l.Read()
		require.NoError(t, err)
		require.Zero(t, healthy.Failures+healthy.Resets, "%v", healthy.Errors)
		require.Equal(t, map[string]int{"remote": healthy.Connects}, healthy.Backends)

		require.NoError(t, w.remote.StopServe(network, at.String()))
		requireLoad(t, l, func(r lab.LoadResult) bool { return r.Failures > 0 && r.Resets >= 3 })
		broken, err := l.Stop()
		require.NoError(t, err)
		require.NotEmpty(t, broken.Errors)
		_, err = l.Read()
		require.ErrorContains(t, err, "no such load")
	}
}

func TestLoadKeepsItsRate(t *testing.T) {
	w := newTown(t)
	at := netip.AddrPortFrom(w.remote.Addr4, 80)
	require.NoError(t, w.remote.Serve("tcp", at.String(), "remote"))
	l, err := w.pod.Load(lab.LoadRequest{Network: "tcp", Targets: []netip.AddrPort{at}, Workers: 4, Rate: 400})
	require.NoError(t, err)
	time.Sleep(time.Second)
	r, err := l.Stop()
	require.NoError(t, err)
	require.Zero(t, r.Failures)
	require.InDelta(t, 400, r.Connects, 100)
}

func requireLoad(t *testing.T, l *lab.Load, enough func(lab.LoadResult) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		r, err := l.Read()
		return err == nil && enough(r)
	}, 10*time.Second, 10*time.Millisecond)
}

// The cgroup is where a socket hook is attached: node and its pods must be in it, and nobody else.
func TestCgroupHoldsTheNodeAlone(t *testing.T) {
	w := newTown(t)
	for _, tt := range []struct {
		host   *lab.Host
		inside bool
	}{{w.Node, true}, {w.pod, true}, {w.remote, false}, {w.Node2, false}, {w.Outside, false}} {
		require.NoError(t, tt.host.Serve("tcp", "127.0.0.1:1", "x"))
		p, err := tt.host.Start("sleep", "60")
		require.NoError(t, err)
		procs, err := os.ReadFile(w.Cgroup() + "/cgroup.procs")
		require.NoError(t, err)
		require.Equal(t, tt.inside, strings.Contains("\n"+string(procs), fmt.Sprintf("\n%d\n", p.Pid)), tt.host.Name)
	}
}

func TestProcess(t *testing.T) {
	w := newTown(t)
	p, err := w.pod.Start("cat", "/proc/self/net/if_inet6", "/nonexistent")
	require.NoError(t, err)
	require.Error(t, p.Wait())
	require.Contains(t, p.Output(), fmt.Sprintf("%x", w.pod.Addr6.AsSlice()))
	require.Contains(t, p.Output(), "No such file")

	p, err = w.pod.Start("sleep", "60")
	require.NoError(t, err)
	require.NoError(t, p.Signal(syscall.SIGTERM))
	require.ErrorContains(t, p.Wait(), "terminated")
	require.NoError(t, p.Kill())

	_, err = w.pod.Start("/nonexistent")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestDoIsInsideAndComesBack(t *testing.T) {
	w := newTown(t)
	before := readNamespace(t)
	var inside string
	require.NoError(t, w.pod.Do(func() error {
		var err error
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}))
	require.NotEqual(t, before, inside)
	require.Equal(t, before, readNamespace(t))
}

func readNamespace(t *testing.T) string {
	t.Helper()
	ns, err := os.Readlink("/proc/thread-self/ns/net")
	require.NoError(t, err)
	return ns
}

func TestBPFFS(t *testing.T) {
	w := labtest.Start(t)
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(w.BPFFS(), &fs))
	require.EqualValues(t, unix.BPF_FS_MAGIC, fs.Type)
}

func TestRemovedPodIsGone(t *testing.T) {
	w := newTown(t)
	require.NoError(t, w.neighbor.Serve("tcp", "0.0.0.0:80", "neighbor"))
	require.NoError(t, w.RemovePod(w.neighbor))
	require.Error(t, w.neighbor.Serve("tcp", "0.0.0.0:81", "neighbor"))
	_, err := w.neighbor.Start("true")
	require.Error(t, err)
	next := addPod(t, w.World, w.Node, "neighbor")
	require.NotEqual(t, w.neighbor.Addr4, next.Addr4)
	_, err = w.AddPod(w.Outside, "x")
	require.ErrorContains(t, err, "outside is not a node")
}
