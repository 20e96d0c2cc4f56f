package flows_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/lbproxy/lbproxy/test/lab"
	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

const (
	// patience is longer than a second, because a TCP socket that gets an ICMP error while it is still in
	// connect() takes it for transient and tells of the one its next SYN causes.
	patience = 2500 * time.Millisecond
	// With so many connections, one of three backends is left out, or a fourth one overlooked, once in a million runs.
	fewestDials, mostDials = 30, 200
	dialsInARow            = 5
	flowsAtOnce            = 32
	syncTime               = 15 * time.Second
)

// The proxy modes. auto is the socket hook with nftables behind it.
const (
	nftables = "nftables"
	auto     = "auto"
)

// variant is a way to dial.
type variant struct {
	name      string
	network   string
	ipv6      bool
	connected bool
	mapped    bool
}

var variants = []variant{
	{name: "TCP IPv4", network: "tcp"},
	{name: "TCP IPv6", network: "tcp", ipv6: true},
	{name: "TCP IPv4 from an IPv6 socket", network: "tcp", mapped: true},
	{name: "UDP IPv4", network: "udp"},
	{name: "UDP IPv6", network: "udp", ipv6: true},
	{name: "UDP IPv4 from an IPv6 socket", network: "udp", mapped: true},
	{name: "UDP IPv4 connected", network: "udp", connected: true},
	{name: "UDP IPv6 connected", network: "udp", ipv6: true, connected: true},
}

func TestFlows(t *testing.T) {
	clusterCIDR := "--cluster-cidr=" + lab.Cluster4.String() + "," + lab.Cluster6.String()
	for _, mode := range []string{nftables, auto} {
		for _, tt := range []struct {
			name  string
			args  []string
			flows []flow
		}{
			{"pods known", []string{clusterCIDR}, table},
			{"pods unknown", nil, withoutDetector},
			{"masquerade all", []string{clusterCIDR, "--masquerade-all"}, masqueradeAll},
		} {
			t.Run(mode+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				agent := w.startAgent(t, mode, tt.args...)
				w.check(t, tt.flows, mode == auto)

				// What is programmed has to work without the agent, however it ended.
				require.NoError(t, agent.Kill())
				t.Run("agent killed", func(t *testing.T) { w.check(t, answered(tt.flows), mode == auto) })
			})
		}
	}
}

func answered(flows []flow) []flow {
	return slices.DeleteFunc(slices.Clone(flows), func(f flow) bool { return f.want.failure != none })
}

// TestAgentStopsCleanly ends the agent the polite way.
func TestAgentStopsCleanly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	agent := w.startAgent(t, auto)
	require.NoError(t, agent.Signal(syscall.SIGTERM))
	require.NoError(t, agent.Wait(), agent.Output())
}

// world is a laboratory with the hosts of the table.
type world struct {
	*lab.World
	hosts map[string]*lab.Host
	other map[bool]netip.Addr // address of the node that NodePorts must not answer on, by IPv6
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{World: labtest.Start(t)}
	w.hosts = map[string]*lab.Host{firstNode: w.Node, secondNode: w.Node2, "outside": w.Outside}
	for _, name := range []string{"self", "a", "b", "c"} {
		on := w.Node
		if w.nodeOf(name) == secondNode {
			on = w.Node2
		}
		h, err := w.AddPod(on, name)
		require.NoError(t, err)
		w.hosts[name] = h
	}
	for name, h := range w.hosts {
		w.serve(t, h, name, targetPort)
	}
	// Whoever gets through to the other node is answered by it, not by a proxy on it.
	for _, s := range services {
		w.serve(t, w.Node2, secondNode, nodePortOf(s.name))
	}
	w.other = map[bool]netip.Addr{}
	for _, p := range []netip.Prefix{netip.MustParsePrefix("172.18.0.50/24"), netip.MustParsePrefix("fd00:172:18::50/64")} {
		require.NoError(t, w.Node.AddAddr(lab.Uplink, p))
		w.other[p.Addr().Is6()] = p.Addr()
	}
	return w
}

func (w *world) nodeOf(host string) string {
	switch host {
	case "b", "c", secondNode:
		return secondNode
	}
	return firstNode
}

func (w *world) serve(t *testing.T, h *lab.Host, name string, port uint16) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		for _, ipv6 := range []bool{false, true} {
			require.NoError(t, h.Serve(network, netip.AddrPortFrom(h.Addr(ipv6), port).String(), name))
		}
	}
}

// startAgent returns when the agent has programmed the Services.
func (w *world) startAgent(t *testing.T, mode string, args ...string) *lab.Process {
	t.Helper()
	args = append([]string{
		"--proxy-mode", mode, "--manifests", w.writeManifests(t), "--instance", "flows", "--hostname-override", firstNode,
		"--cgroup-root", w.Cgroup(), "--bpffs", w.BPFFS(),
	}, args...)
	agent, err := w.Node.Start(labtest.Build(t), args...)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent said:\n%s", agent.Output())
		}
	})
	for deadline := time.Now().Add(syncTime); !w.synced(t, mode == auto); time.Sleep(20 * time.Millisecond) {
		select {
		case <-agent.Done():
			require.Fail(t, "the agent has ended", agent.Output())
		default:
			require.Less(t, time.Now(), deadline, "Services do not work:\n%s", agent.Output())
		}
	}
	return agent
}

// synced says whether the first and the last Service are reachable in every way. The pod dials a NodePort, because
// there the source tells which datapath has done it: nftables may be ready before the hook is.
func (w *world) synced(t *testing.T, hook bool) bool {
	t.Helper()
	for _, f := range []flow{
		{client: outside, to: vip, service: "cluster", want: by(masquerade)},
		{client: pod, to: nodePort, service: "cluster", want: by(masquerade)},
		{client: outside, to: nodePort, service: "vip-elsewhere", want: by(masquerade)},
		{client: pod, to: nodePort, service: "vip-elsewhere", want: by(masquerade)},
	} {
		for _, v := range variants {
			r := w.request(&f, v)
			r.Timeout = 200 * time.Millisecond
			a, err := w.clientHost(f.client).Dial(r)
			require.NoError(t, err)
			if !slices.Contains(w.sources(f.client, f.expected(v, hook).source, v.ipv6), a.SeenSource.Addr()) {
				return false
			}
		}
	}
	return true
}

// check dials every flow in every way, many at once, and then reports them one by one.
func (w *world) check(t *testing.T, flows []flow, hook bool) {
	var mu sync.Mutex // of the maps, one for each flow
	answers := make([]map[string][]lab.Answer, len(flows))
	var dialing errgroup.Group
	dialing.SetLimit(flowsAtOnce)
	for i := range flows {
		f := &flows[i]
		answers[i] = map[string][]lab.Answer{}
		for _, v := range variants {
			dialing.Go(func() error {
				list, err := w.dial(f, v, f.expected(v, hook))
				mu.Lock()
				defer mu.Unlock()
				answers[i][v.name] = list
				return err
			})
		}
	}
	require.NoError(t, dialing.Wait())
	for i := range flows {
		f := &flows[i]
		t.Run(fmt.Sprintf("%s %s to %s of %s", f.row, f.client, f.to, f.service), func(t *testing.T) {
			for _, v := range variants {
				t.Run(v.name, func(t *testing.T) { w.verify(t, f, v, f.expected(v, hook), answers[i][v.name]) })
			}
		})
	}
}

// dial dials until every expected backend has answered, or often enough to give up.
func (w *world) dial(f *flow, v variant, want outcome) ([]lab.Answer, error) {
	host, r := w.clientHost(f.client), w.request(f, v)
	if want.failure != none {
		return host.DialN(r, 1)
	}
	var list []lab.Answer
	for len(list) < mostDials {
		more, err := host.DialN(r, dialsInARow)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
		seen := backendsOf(list)
		if slices.Contains(seen, "") || len(list) >= fewestDials && len(seen) >= len(want.backends) {
			return list, nil
		}
	}
	return list, nil
}

func backendsOf(answers []lab.Answer) []string {
	seen := map[string]bool{}
	for _, a := range answers {
		seen[a.Backend] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func (w *world) verify(t *testing.T, f *flow, v variant, want outcome, answers []lab.Answer) {
	t.Helper()
	require.NotEmpty(t, answers)
	if want.failure != none {
		require.Equal(t, string(want.failure), string(failureOf(answers[0])), "%+v", answers[0])
		return
	}
	for _, a := range answers {
		require.Empty(t, a.Error, "%+v", a)
		require.Equal(t, w.target(f, v.ipv6), a.Peer, "the client is told another peer than it dialed")
		require.True(t, slices.Contains(w.sources(f.client, want.source, v.ipv6), a.SeenSource.Addr()),
			"backend %s sees %s, which is not %s", a.Backend, a.SeenSource, want.source)
	}
	require.Equal(t, want.backends, backendsOf(answers))
}

func failureOf(a lab.Answer) failure {
	switch {
	case a.Refused():
		return refused
	case a.TimedOut():
		return silence
	case a.Unreachable():
		return unreachable
	case a.Errno == syscall.EPERM:
		return forbidden
	}
	return failure(strings.TrimSpace(a.Backend + " " + a.Error))
}

// sources lists the addresses that a backend may see.
func (w *world) sources(c client, s source, ipv6 bool) []netip.Addr {
	if s == own && c != node {
		return []netip.Addr{w.clientHost(c).Addr(ipv6)}
	}
	// The node has two: one towards other machines, one towards its pods.
	gateway := lab.NodePods4.Addr().Next()
	if ipv6 {
		gateway = lab.NodePods6.Addr().Next()
	}
	return []netip.Addr{w.Node.Addr(ipv6), gateway}
}

func (w *world) clientHost(c client) *lab.Host {
	switch c {
	case node:
		return w.Node
	case outside:
		return w.Outside
	}
	return w.hosts["self"]
}

func (w *world) request(f *flow, v variant) lab.Request {
	return lab.Request{
		Network: v.network, Addr: w.target(f, v.ipv6), Connected: v.connected, MappedV4: v.mapped, Timeout: patience,
	}
}

// prefix is the range the Services' addresses of one kind come from.
func (f frontend) prefix(ipv6 bool) netip.Prefix {
	ranges := map[frontend][2]netip.Prefix{
		clusterIP:  {lab.Services4, lab.Services6},
		vip:        {lab.LoadBalancer4, lab.LoadBalancer6},
		externalIP: {lab.External4, lab.External6},
	}
	if ipv6 {
		return ranges[f][1]
	}
	return ranges[f][0]
}

// target is what is dialed.
func (w *world) target(f *flow, ipv6 bool) netip.AddrPort {
	addr := map[frontend]netip.Addr{
		nodePort: w.Node.Addr(ipv6), otherNode: w.Node2.Addr(ipv6), otherAddress: w.other[ipv6],
		loopback: netip.AddrFrom4([4]byte{127, 0, 0, 1}),
	}[f.to]
	switch {
	case f.to == loopback && ipv6:
		addr = netip.IPv6Loopback()
	case !addr.IsValid():
		return netip.AddrPortFrom(addressOf(f.service, f.to.prefix(ipv6)), servicePort)
	}
	return netip.AddrPortFrom(addr, nodePortOf(f.service))
}
