package endpoints

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// ep is an endpoint of a selection test: its conditions are a string of the letters r(eady), s(erving), t(erminating).
type ep struct {
	cond  string
	local bool
	zones []string
	nodes []string
}

// TestSelectBackends goes through the consequences of kube-proxy's CategorizeEndpoints. Endpoints are named by their
// index; own node "node", own zone "zone".
func TestSelectBackends(t *testing.T) {
	here, there := []string{"zone"}, []string{"elsewhere"}
	node, other := []string{"node"}, []string{"other"}
	for _, test := range []struct {
		name           string
		eps            []ep
		zone           string // own zone; "zone" if empty, none if "-"
		cluster, local []int
		none           bool // nobody in the cluster can serve
	}{
		{name: "no endpoints", none: true},
		{name: "ready, local and remote", eps: []ep{{cond: "rs", local: true}, {cond: "rs"}}, cluster: []int{0, 1}, local: []int{0}},
		{name: "only remote: others can serve", eps: []ep{{cond: "rs"}}, cluster: []int{0}},
		{name: "unready", eps: []ep{{cond: ""}, {cond: "", local: true}}, none: true},
		{name: "serving but neither ready nor terminating", eps: []ep{{cond: "s", local: true}}, none: true},
		{name: "terminating but not serving", eps: []ep{{cond: "t", local: true}}, none: true},
		{name: "terminating and serving, for want of better", eps: []ep{{cond: "st", local: true}, {cond: "st"}}, cluster: []int{0, 1}, local: []int{0}},
		{name: "one ready remote ends the cluster's fallback", eps: []ep{{cond: "st", local: true}, {cond: "rs"}}, cluster: []int{1}, local: []int{0}},
		{name: "one ready local ends both fallbacks", eps: []ep{{cond: "st", local: true}, {cond: "rs", local: true}}, cluster: []int{1}, local: []int{1}},
		{name: "terminating remote only: no local", eps: []ep{{cond: "st"}}, cluster: []int{0}},
		{name: "ready wins over terminating", eps: []ep{{cond: "rt", local: true}, {cond: "st", local: true}}, cluster: []int{0}, local: []int{0}},

		{name: "zone hints", eps: []ep{{cond: "r", zones: here}, {cond: "r", zones: there}}, cluster: []int{0}},
		{name: "zone hints for several zones", eps: []ep{{cond: "r", zones: []string{"elsewhere", "zone"}}, {cond: "r", zones: there}}, cluster: []int{0}},
		{name: "zone hints, none for this zone", eps: []ep{{cond: "r", zones: there}, {cond: "r", zones: there}}, cluster: []int{0, 1}},
		{name: "zone hints, one missing", eps: []ep{{cond: "r", zones: here}, {cond: "r"}}, cluster: []int{0, 1}},
		{name: "zone hints, own zone unknown", zone: "-", eps: []ep{{cond: "r", zones: here}, {cond: "r", zones: there}}, cluster: []int{0, 1}},
		{name: "an empty zone hint names no unknown zone", zone: "-", eps: []ep{{cond: "r", zones: []string{""}}, {cond: "r", zones: there}}, cluster: []int{0, 1}},
		{name: "hints of unready endpoints do not count", eps: []ep{{cond: "r", zones: here}, {cond: "r", zones: there}, {cond: ""}}, cluster: []int{0}},
		{name: "hints of terminating endpoints do not count", eps: []ep{{cond: "st", zones: here}, {cond: "r", zones: there}}, cluster: []int{1}},
		{name: "fallback ignores hints", eps: []ep{{cond: "st", zones: here}, {cond: "st", zones: there}}, cluster: []int{0, 1}},
		{name: "local ignores hints", eps: []ep{{cond: "r", local: true, zones: there}, {cond: "r", zones: here}}, cluster: []int{1}, local: []int{0}},

		{name: "node hints", eps: []ep{{cond: "r", nodes: node}, {cond: "r", nodes: other}}, cluster: []int{0}},
		{name: "node hints go before zone hints", eps: []ep{{cond: "r", nodes: node, zones: there}, {cond: "r", nodes: other, zones: here}}, cluster: []int{0}},
		{name: "node hints need no zone hints", eps: []ep{{cond: "r", nodes: node}, {cond: "r", nodes: other, zones: here}}, cluster: []int{0}},
		{name: "node hints, none for this node: zone hints", eps: []ep{{cond: "r", nodes: other, zones: there}, {cond: "r", nodes: other, zones: here}}, cluster: []int{1}},
		{name: "node hints, one missing: zone hints", eps: []ep{{cond: "r", nodes: node, zones: there}, {cond: "r", zones: here}}, cluster: []int{1}},
		{name: "a node hint need not be where the endpoint is", eps: []ep{{cond: "r", nodes: other, local: true}, {cond: "r", nodes: node}}, cluster: []int{1}, local: []int{0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			zone := map[string]string{"": "zone", "-": ""}[test.zone]
			got := selectBackends(testCandidates(test.eps), "node", zone)
			require.Equal(t, test.cluster, indexes(got.cluster), "cluster")
			require.Equal(t, test.local, indexes(got.local), "local")
			require.Equal(t, !test.none, got.hasAny, "hasAny")
			for _, b := range got.local {
				require.True(t, b.Local)
			}
		})
	}
}

func testCandidates(eps []ep) []candidate {
	var all []candidate
	for i, e := range eps {
		has := func(letter byte) bool {
			for j := range len(e.cond) {
				if e.cond[j] == letter {
					return true
				}
			}
			return false
		}
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		all = append(all, candidate{netip.AddrPortFrom(addr, 80), &endpoint{
			addr: addr, ready: has('r'), serving: has('s'), terminating: has('t'),
			zoneHints: hintNames(e.zones, func(s string) string { return s }),
			nodeHints: hintNames(e.nodes, func(s string) string { return s }),
		}, e.local})
	}
	return all
}

func indexes(set []datapath.Backend) []int {
	var list []int
	for _, b := range set {
		list = append(list, int(b.Addr.Addr().As4()[3]))
	}
	return list
}

// TestMergeDuplicates checks who wins when slices disagree about an address.
func TestMergeDuplicates(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	ready := endpoint{addr: addr, ready: true, serving: true}
	draining := endpoint{addr: addr, serving: true, terminating: true}
	unready := endpoint{addr: addr}
	for _, test := range []struct {
		name   string
		merged []endpoint
		want   endpoint
	}{
		{"terminating does not replace", []endpoint{ready, draining}, ready},
		{"terminating is replaced", []endpoint{draining, ready}, ready},
		{"terminating is replaced even by an unready one", []endpoint{draining, unready}, unready},
		{"the last of those that do not terminate", []endpoint{ready, unready}, unready},
		{"the first of those that terminate", []endpoint{draining, {addr: addr, terminating: true}}, draining},
	} {
		t.Run(test.name, func(t *testing.T) {
			var list []*slice
			for _, e := range test.merged {
				list = append(list, &slice{ports: []slicePort{{"http", datapath.TCP, 80}}, endpoints: []endpoint{e}})
			}
			got := candidates(list, &servicePort{name: "http", protocol: datapath.TCP}, false, "node")
			require.Len(t, got, 1)
			require.Equal(t, test.want, *got[0].endpoint)
		})
	}
}
