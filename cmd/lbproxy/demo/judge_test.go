package demo

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/pkg/datapath"
	"github.com/lbproxy/lbproxy/test/lab"
)

func TestExpect(t *testing.T) {
	both := []string{"edge-1", "edge-2"}
	web := []string{"web-1", "web-2"}
	none := []string(nil)
	tests := []struct {
		name    string
		f       frontend
		client  string
		sockets bool
		want    []string
		source  string
	}{
		{"cluster IP", frontend{service: "web"}, fromPod, false, web, fromPod},
		{"cluster IP at the socket", frontend{service: "web"}, fromPod, true, web, fromPod},
		{"cluster IP from the node", frontend{service: "web"}, fromNode, true, web, fromNode},
		{"cluster IP routed from outside", frontend{service: "web"}, fromOutside, true, web, fromNode},
		{"internal Local", frontend{service: "edge", local: true}, fromOutside, false, both[:1], fromNode},
		{"node port", frontend{service: "web", kind: datapath.NodePort}, fromPod, false, web, fromNode},
		{"node port at the socket", frontend{service: "web", kind: datapath.NodePort}, fromPod, true, web, fromPod},
		{"external Local from outside", frontend{service: "edge", kind: datapath.LoadBalancer, local: true}, fromOutside, true, both[:1], fromOutside},
		{"external Local from a pod", frontend{service: "edge", kind: datapath.LoadBalancer, local: true}, fromPod, false, both, fromPod},
		{"external Local from the node", frontend{service: "edge", kind: datapath.NodePort, local: true}, fromNode, false, both, fromNode},
		{"no endpoints", frontend{service: "reports"}, fromPod, false, none, fromPod},
		{"loopback by packets", frontend{service: "web", kind: datapath.NodePort, loopback: true}, fromNode, false, none, fromNode},
		{"loopback at the socket", frontend{service: "web", kind: datapath.NodePort, loopback: true}, fromNode, true, web, fromNode},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := expect(&tt.f, tt.client, firstBackends(), tt.sockets)
			require.Equal(t, tt.want, e.backends)
			require.Equal(t, tt.source, e.source)
		})
	}
}

func TestCheck(t *testing.T) {
	from := func(addr string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(addr), 40000) }
	served := expectation{backends: []string{"web-1"}, source: fromPod}
	closed := expectation{}
	refused := lab.Answer{Errno: syscall.ECONNREFUSED, Error: "connect: connection refused"}
	silent := lab.Answer{Errno: syscall.ETIMEDOUT, Error: "connect: connection timed out"}
	forbidden := lab.Answer{Errno: syscall.EPERM, Error: "send: operation not permitted"}
	tests := []struct {
		name string
		a    lab.Answer
		e    expectation
		want string
	}{
		{"right", lab.Answer{Backend: "web-1", SeenSource: from("10.244.1.7")}, served, ""},
		{"right over IPv6", lab.Answer{Backend: "web-1", SeenSource: from("fd00:10:244:1::7")}, served, ""},
		{"wrong backend", lab.Answer{Backend: "web-2", SeenSource: from("10.244.1.7")}, served, "were answered by web-2, which is not"},
		{"wrong source", lab.Answer{Backend: "web-1", SeenSource: from("172.18.0.11")}, served, "an address of node instead of pod"},
		{"foreign source", lab.Answer{Backend: "web-1", SeenSource: from("192.0.2.1")}, served, "an address of nobody"},
		{"refused", refused, served, "failed: connect: connection refused"},
		{"silent", silent, served, "failed: connect: connection timed out"},
		{"rightly refused", refused, closed, ""},
		{"silent instead of refused", silent, closed, "failed: connect: connection timed out"},
		{"answered instead of refused", lab.Answer{Backend: "web-1"}, closed, "were answered by web-1 instead of refused"},
		{"forbidden instead of refused", forbidden, closed, "failed: send: operation not permitted"},
		{"forbidden on the way out", forbidden, expectation{forbidden: true}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := check(tt.a, tt.e)
			if tt.want == "" {
				require.Empty(t, got)
			}
			require.Contains(t, got, tt.want)
		})
	}
}

func TestJudge(t *testing.T) {
	answer := lab.Answer{Backend: "web-1", SeenSource: at("10.244.1.7:40000"), Connect: 30 * time.Microsecond}
	far := lab.Answer{Backend: "web-2", SeenSource: at("10.244.1.7:40000"), Connect: 90 * time.Microsecond}
	s := sample{
		answers: []lab.Answer{answer, far, answer, {Errno: syscall.ETIMEDOUT, Error: "connect: connection timed out"}},
		direct: map[string][]time.Duration{
			"web-1": {20 * time.Microsecond}, "web-2": {60 * time.Microsecond, time.Second, 10 * time.Microsecond},
		},
	}
	c := judge(&frontends[0], fromPod, []sample{s}, expectation{backends: []string{"web-1", "web-2"}, source: fromPod})
	require.Equal(t, 4, c.Made)
	require.Equal(t, map[string]int{"web-1": 2, "web-2": 1}, c.Answers)
	require.Equal(t, map[string]int{"10.244.1.7": 3}, c.Sources)
	require.InDelta(t, 1.5, c.Ratio, 1e-9, "each answer is compared with the same pod dialed directly")
	require.Equal(t, []string{"10.96.20.10:80: 1 of 4 failed: connect: connection timed out"}, c.Problems)
}

func TestJudgeMissesABackend(t *testing.T) {
	answers := make([]lab.Answer, 40)
	for i := range answers {
		answers[i] = lab.Answer{Backend: "web-1", SeenSource: at("10.244.1.7:40000"), Connect: 1}
	}
	c := judge(&frontends[0], fromPod, []sample{{answers: answers}}, expectation{backends: []string{"web-1", "web-2"}, source: fromPod})
	require.Equal(t, []string{"10.96.20.10:80: web-2 never answered"}, c.Problems)
}
