package nftables

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// inNamespace moves the test to a network namespace of its own, on a thread that dies with it.
func inNamespace(tb testing.TB) {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("programming nftables needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	ns, err := netns.New()
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = ns.Close() })
}

func nft(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	require.NoError(tb, err, string(out))
	return string(out)
}

func open(tb testing.TB) *Datapath {
	tb.Helper()
	d, err := Open(Options{Table: "lbproxy"})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = d.Close() })
	return d
}

// webService has n backends behind a ClusterIP and an externally reachable address, in both families.
func webService(i, n int) *datapath.Service {
	s := &datapath.Service{Name: datapath.Name{Namespace: "default", Name: fmt.Sprintf("web-%d", i)}}
	for _, v6 := range []bool{false, true} {
		p := datapath.Port{Name: "http", Protocol: datapath.TCP, IPv6: v6}
		cluster := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		vip := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
		if v6 {
			cluster, vip = netip.MustParseAddr(fmt.Sprintf("fd00:96::%x", i+1)), netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))
		}
		var set, local []datapath.Backend
		for j := range n {
			b := datapath.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(j + 1)}), 8080), Local: j == 0}
			if v6 {
				b.Addr = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("fd00:10:%x::%x", i, j+1)), 8080)
			}
			set = append(set, b)
		}
		if n > 0 {
			local = set[:1]
		}
		p.Sets = [][]datapath.Backend{set, local}
		p.Frontends = []datapath.Frontend{
			{Kind: datapath.ClusterIP, IP: cluster, Port: 80, Masquerade: datapath.FromNode | datapath.FromOutside},
			{Kind: datapath.LoadBalancer, IP: vip, Port: 80, Outside: datapath.Route{Set: 1, Empty: datapath.Drop}, Masquerade: datapath.FromNode},
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

var testPods = &datapath.LocalPods{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}}

func apply(tb testing.TB, d *Datapath, u datapath.Update) {
	tb.Helper()
	require.NoError(tb, d.Apply(context.Background(), u))
}

func world(services, backends int) datapath.Update {
	u := datapath.Update{Full: true, LocalPods: testPods}
	for i := range services {
		u.Services = append(u.Services, webService(i, backends))
	}
	return u
}

func TestNftPrintsTheTables(t *testing.T) {
	inNamespace(t)
	apply(t, open(t), world(3, 2))
	text := nft(t, "list", "ruleset")
	require.Contains(t, text, "dnat ip to meta priority . numgen random mod 2 map @backends")
	require.Contains(t, text, "dnat ip6 to meta priority . numgen random mod 2 map @backends")
	nft(t, "-j", "list", "ruleset")
}

func TestAServiceIsElementsOnly(t *testing.T) {
	inNamespace(t)
	d := open(t)
	apply(t, d, world(2, 2))
	before := nft(t, "-t", "list", "ruleset") // -t leaves the elements out
	apply(t, d, datapath.Update{Services: []*datapath.Service{webService(7, 5)}})
	require.Equal(t, before, nft(t, "-t", "list", "ruleset"))
}

func TestRestartWritesNothing(t *testing.T) {
	inNamespace(t)
	apply(t, open(t), world(50, 3))
	before := nft(t, "list", "ruleset")

	again := open(t)
	apply(t, again, world(50, 3))
	require.Zero(t, again.Stats().Writes)
	require.Equal(t, before, nft(t, "list", "ruleset"))
}

// dump returns what the kernel holds as `lbproxy dump` prints it.
func dump(tb testing.TB) string {
	tb.Helper()
	var b strings.Builder
	require.NoError(tb, Dump(Options{Table: "lbproxy"}, &b))
	return b.String()
}

// Whatever sequence of changes leads to a world, and over whichever restarts, the kernel ends up with that world and
// nothing more.
func TestChangesEndInTheWorld(t *testing.T) {
	inNamespace(t)
	d := open(t)
	random := rand.New(rand.NewPCG(1, 2))
	sizes := map[int]int{}
	apply(t, d, datapath.Update{Full: true, LocalPods: testPods})
	for range 120 {
		i, n := random.IntN(12), random.IntN(20)
		switch random.IntN(6) {
		case 0:
			apply(t, d, datapath.Update{Removed: []datapath.Name{webService(i, 0).Name}})
			delete(sizes, i)
		case 1:
			d = open(t)
			u := datapath.Update{Full: true, LocalPods: testPods}
			for i, n := range sizes {
				u.Services = append(u.Services, webService(i, n))
			}
			apply(t, d, u)
			require.Zero(t, d.Stats().Writes)
		default:
			apply(t, d, datapath.Update{Services: []*datapath.Service{webService(i, n)}})
			sizes[i] = n
		}
	}
	got, elements := dump(t), countElements(t)

	require.NoError(t, Cleanup(Options{Table: "lbproxy"}))
	require.Empty(t, nft(t, "list", "ruleset"))
	fresh := open(t)
	u := datapath.Update{Full: true, LocalPods: testPods}
	for i, n := range sizes {
		u.Services = append(u.Services, webService(i, n))
	}
	apply(t, fresh, u)
	require.Equal(t, dump(t), got)
	require.Equal(t, countElements(t), elements)
}

func countElements(tb testing.TB) [numSets]int {
	tb.Helper()
	d := open(tb)
	require.NoError(tb, d.adopt())
	var n [numSets]int
	for e := range d.strays.elements {
		n[e.set]++
	}
	return n
}

func TestOneBackendIsTwoElements(t *testing.T) {
	inNamespace(t)
	d := open(t)
	apply(t, d, world(3, 3))
	s := webService(1, 3)
	s.Ports = s.Ports[:1]
	apply(t, d, datapath.Update{Services: []*datapath.Service{s}})
	moved := webService(1, 3)
	moved.Ports = moved.Ports[:1]
	moved.Ports[0].Sets[0] = slices.Clone(moved.Ports[0].Sets[0])
	moved.Ports[0].Sets[0][2].Addr = netip.MustParseAddrPort("10.0.1.77:8080")
	before := d.Stats().Writes
	apply(t, d, datapath.Update{Services: []*datapath.Service{moved}})
	require.EqualValues(t, 2, d.Stats().Writes-before, "one element goes, one comes")
}

func TestLostTableComesBack(t *testing.T) {
	inNamespace(t)
	d := open(t)
	apply(t, d, world(5, 2))
	want := dump(t)
	nft(t, "flush", "ruleset")
	// The first write after the loss fails and says so, once; the next one looks at the kernel and repairs.
	all := world(5, 3)
	all.Full = false
	err := d.Apply(context.Background(), all)
	require.ErrorContains(t, err, "write 5 services to nftables")
	require.Less(t, len(err.Error()), 500)
	apply(t, d, datapath.Update{Services: []*datapath.Service{webService(1, 2)}})
	require.Equal(t, want, dump(t))
}

// picture is all that nft prints, whatever the order of tables, chains and elements.
func picture(tb testing.TB) []string {
	tb.Helper()
	words := strings.FieldsFunc(nft(tb, "list", "ruleset"), func(r rune) bool { return strings.ContainsRune("\n\t,{}", r) })
	for i := range words {
		words[i] = strings.TrimSpace(words[i])
	}
	slices.Sort(words)
	return words
}

// What a stranger removes, an audit brings back.
func TestAuditRepairs(t *testing.T) {
	for _, command := range []string{"flush ruleset", "delete table ip lbproxy", "flush table ip6 lbproxy", "flush chain ip lbproxy services"} {
		t.Run(command, func(t *testing.T) {
			inNamespace(t)
			d := open(t)
			apply(t, d, world(5, 2))
			want := picture(t)
			before := d.Stats().Writes
			apply(t, d, datapath.Update{})
			require.Equal(t, before, d.Stats().Writes)
			nft(t, strings.Fields(command)...)
			require.NotEqual(t, want, picture(t))
			apply(t, d, datapath.Update{})
			require.Equal(t, want, picture(t))
		})
	}
}

func TestFirstUpdateMustBeFull(t *testing.T) {
	inNamespace(t)
	apply(t, open(t), world(2, 1))
	want := dump(t)
	require.ErrorContains(t, open(t).Apply(context.Background(), datapath.Update{}), "must be full")
	require.Equal(t, want, dump(t))
}

func TestLocalPodsChange(t *testing.T) {
	inNamespace(t)
	d := open(t)
	apply(t, d, world(1, 1))
	want := dump(t)
	apply(t, d, datapath.Update{LocalPods: &datapath.LocalPods{Interfaces: []string{"veth*", "cni0"}}})
	text := nft(t, "list", "chain", "ip", "lbproxy", "cluster")
	require.Contains(t, text, `iifname "veth*" goto pick`)
	require.Contains(t, text, `iifname "cni0" goto pick`)
	require.NotContains(t, text, "10.244")
	require.Equal(t, want, dump(t))
}

func TestTableOfAnotherLayoutIsReplaced(t *testing.T) {
	for name, services := range map[string]int{"with Services": 2, "without any": 0} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t)
			nft(t, "add", "table", "ip", "lbproxy")
			nft(t, "add", "chain", "ip", "lbproxy", "base-v0-123456789abc")
			nft(t, "add", "set", "ip", "lbproxy", "frontends", "{ type ipv4_addr; }")
			apply(t, open(t), world(services, 2))
			require.Equal(t, services > 1, strings.Contains(dump(t), "10.96.0.1:80/TCP -> 10.0.1.1:8080 10.0.1.2:8080"))
			require.Contains(t, nft(t, "list", "ruleset"), "map frontends")
			require.NotContains(t, nft(t, "list", "ruleset"), "base-v0")
			again := open(t)
			apply(t, again, world(services, 2))
			require.Zero(t, again.Stats().Writes)
		})
	}
}

// The rules may be lost while the marker chain and the elements stay.
func TestLostRulesComeBack(t *testing.T) {
	inNamespace(t)
	apply(t, open(t), world(2, 20))
	want := picture(t)
	nft(t, "flush", "table", "ip", "lbproxy")
	require.NotEqual(t, want, picture(t))
	apply(t, open(t), world(2, 20))
	require.Equal(t, want, picture(t))
}

// withFrontend is a Service with one IPv4 frontend of webService number i.
func withFrontend(name string, i, frontend, backends int) *datapath.Service {
	s := webService(i, backends)
	s.Name.Name = name
	s.Ports = s.Ports[:1]
	s.Ports[0].Frontends = []datapath.Frontend{s.Ports[0].Frontends[frontend]}
	return s
}

// While no agent was there a VIP passed to another Service. Both must not inherit the set it led to.
func TestVIPPassedWhileDead(t *testing.T) {
	for name, backends := range map[string]int{"other backends": 1, "one backend more": 3} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t)
			a := webService(1, 2)
			a.Ports = a.Ports[:1]
			f := a.Ports[0].Frontends
			f[1].Outside, f[1].Masquerade = f[0].Outside, datapath.FromEveryone
			apply(t, open(t), datapath.Update{Full: true, Services: []*datapath.Service{a}})

			b := withFrontend("b", 1, 1, backends)
			b.Ports[0].Frontends[0] = f[1]
			d := open(t)
			apply(t, d, datapath.Update{Full: true, Services: []*datapath.Service{withFrontend(a.Name.Name, 1, 0, 2), b}})
			apply(t, d, datapath.Update{Removed: []datapath.Name{a.Name}})
			require.NotContains(t, dump(t), "10.96.0.1:80")
			entries, err := Read(Options{Table: "lbproxy"})
			require.NoError(t, err)
			require.Len(t, entries, 1)
			require.Len(t, entries[0].Backends, backends)
		})
	}
}

// Ranges of sources that overlap those before them, changed by a live agent and over a restart.
func TestSourcesChange(t *testing.T) {
	inNamespace(t)
	with := func(sources ...string) datapath.Update {
		s := withFrontend("s", 1, 1, 1)
		for _, p := range sources {
			s.Ports[0].Frontends[0].Sources = append(s.Ports[0].Frontends[0].Sources, netip.MustParsePrefix(p))
		}
		return datapath.Update{Full: true, Services: []*datapath.Service{s}}
	}
	apply(t, open(t), with("10.0.0.0/8"))
	d := open(t)
	apply(t, d, with("10.1.0.0/16", "192.0.2.0/24"))
	require.Contains(t, nft(t, "list", "set", "ip", "lbproxy", "allowed"), "10.1.0.0/16")
	require.NotContains(t, nft(t, "list", "set", "ip", "lbproxy", "allowed"), "10.0.0.0/8")
	apply(t, d, with("10.0.0.0/8"))
	require.NotContains(t, nft(t, "list", "set", "ip", "lbproxy", "allowed"), "10.1.0.0/16")
	apply(t, d, with())
	require.NotContains(t, nft(t, "list", "set", "ip", "lbproxy", "restricted"), "198.51")
}

// A Service that cannot be planned keeps what it has, and no other one notices: not even what goes away over a restart.
func TestOneBadServiceHarmsNoOther(t *testing.T) {
	inNamespace(t)
	apply(t, open(t), world(4, 2))
	before := dump(t)
	bad := webService(3, 1)
	bad.Ports[0].Frontends[0].Masquerade = datapath.FromPods
	update := datapath.Update{Full: true, LocalPods: testPods, Services: []*datapath.Service{webService(1, 0), webService(2, 2), bad}}

	d := open(t)
	var fault *datapath.ServiceError
	require.ErrorAs(t, d.Apply(context.Background(), update), &fault)
	require.Equal(t, bad.Name, fault.Service)
	require.NotContains(t, dump(t), "10.96.0.0:80", "the Service that went")
	require.Contains(t, dump(t), "10.96.0.1:80/TCP -> reject")
	for _, line := range strings.Split(before, "\n") {
		if strings.HasPrefix(line, "10.96.0.2:80/") || strings.HasPrefix(line, "10.96.0.3:80/") || strings.HasPrefix(line, "198.51.0.3:80/") {
			require.Contains(t, dump(t), line)
		}
	}
	apply(t, d, datapath.Update{Services: []*datapath.Service{webService(3, 1)}})
	require.Contains(t, dump(t), "10.96.0.3:80/TCP -> 10.0.3.1:8080\n")
}

// A frontend passes from one Service to another, in two transactions because both are large.
func TestLargeHandover(t *testing.T) {
	inNamespace(t)
	large := func(name string, i int, f ...datapath.Frontend) *datapath.Service {
		s := withFrontend(name, i, 0, 3)
		for j := range elementsPerTransaction {
			s.Ports[0].Sets[0] = append(s.Ports[0].Sets[0],
				datapath.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, byte(i), byte(j >> 8), byte(j)}), 80)})
		}
		s.Ports[0].Sets = append(s.Ports[0].Sets, nil)
		s.Ports[0].Frontends = append(s.Ports[0].Frontends, f...)
		return s
	}
	vip := datapath.Frontend{Kind: datapath.LoadBalancer, IP: netip.MustParseAddr("198.51.100.1"), Port: 80, Masquerade: datapath.FromEveryone,
		Inside: datapath.Route{Set: 2}, Outside: datapath.Route{Set: 2}, Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	d := open(t)
	apply(t, d, datapath.Update{Full: true, Services: []*datapath.Service{large("z", 1, vip)}})
	apply(t, d, datapath.Update{Services: []*datapath.Service{large("b", 2, vip), large("z", 3)}})
	require.Contains(t, dump(t), "198.51.100.1:80/TCP -> reject")
	require.Contains(t, nft(t, "list", "set", "ip", "lbproxy", "restricted"), "198.51.100.1")
	require.Contains(t, nft(t, "list", "set", "ip", "lbproxy", "allowed"), "198.51.100.1")
}

func TestSourcesAndScaleToZero(t *testing.T) {
	inNamespace(t)
	d := open(t)
	s := webService(1, 1)
	s.Ports[0].Frontends[1].Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.128/25")}
	apply(t, d, datapath.Update{Full: true, Services: []*datapath.Service{s, webService(2, 1)}})
	require.Contains(t, nft(t, "list", "set", "ip", "lbproxy", "allowed"), "198.51.0.1 . tcp . 80 . 192.0.2.0/24")
	apply(t, d, datapath.Update{Services: []*datapath.Service{webService(1, 0)}})
	require.Contains(t, dump(t), "10.96.0.1:80/TCP -> reject")
	require.Contains(t, dump(t), "198.51.0.1:80/TCP -> drop")
	require.NotContains(t, nft(t, "list", "set", "ip", "lbproxy", "allowed"), "192.0.2.0")
}
