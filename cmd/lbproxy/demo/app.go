package demo

import (
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/pkg/datapath"
	"github.com/lbproxy/lbproxy/test/lab"
)

// pod is a pod of the world. Its addresses follow from the order in which the pods of its node are made.
type pod struct {
	name    string
	node    string // node or node2
	service string // whose backend it is; empty for a client
	dormant bool   // runs, but is no endpoint until the demo scales up
}

// The clients. The pod has its name from this list too.
const (
	fromPod     = "pod"
	fromNode    = "node"
	fromOutside = "outside"
)

var clients = []string{fromPod, fromNode, fromOutside}

// pods are in the order in which they are made: the endpoints in examples/ have their addresses.
var pods = []pod{
	{name: "web-1", node: "node", service: "web"},
	{name: "api-1", node: "node", service: "api"},
	{name: "cache-1", node: "node", service: "cache"},
	{name: "dns-1", node: "node", service: "dns"},
	{name: "edge-1", node: "node", service: "edge"},
	{name: fromPod, node: "node"},
	{name: "web-2", node: "node2", service: "web"},
	{name: "api-2", node: "node2", service: "api"},
	{name: "cache-2", node: "node2", service: "cache"},
	{name: "dns-2", node: "node2", service: "dns"},
	{name: "edge-2", node: "node2", service: "edge"},
	{name: "syslog-1", node: "node2", service: "syslog"},
	{name: "web-3", node: "node2", service: "web", dormant: true},
}

// addrs returns the addresses pod i of pods gets.
func addrs(i int) (v4, v6 netip.Addr) {
	v4, v6 = lab.NodePods4.Addr().Next(), lab.NodePods6.Addr().Next()
	if pods[i].node == "node2" {
		v4, v6 = lab.Node2Pods4.Addr().Next(), lab.Node2Pods6.Addr().Next()
	}
	for _, p := range pods[:i+1] {
		if p.node == pods[i].node {
			v4, v6 = v4.Next(), v6.Next()
		}
	}
	return v4, v6
}

// podAddr returns the address of the pod with this name.
func podAddr(name string, ipv6 bool) netip.Addr {
	i := slices.IndexFunc(pods, func(p pod) bool { return p.name == name })
	v4, v6 := addrs(i)
	if ipv6 {
		return v6
	}
	return v4
}

// targets are the ports the pods of a service serve, and how.
var targets = map[string]struct {
	port     uint16
	networks []string
}{
	"web":    {8080, []string{"tcp"}},
	"api":    {9090, []string{"tcp"}},
	"cache":  {6379, []string{"tcp"}},
	"dns":    {8053, []string{"udp", "tcp"}},
	"edge":   {8443, []string{"tcp", "udp"}},
	"syslog": {5514, []string{"udp", "tcp"}},
}

// frontend is what clients dial, in both families.
type frontend struct {
	service string
	kind    datapath.Kind
	network string // tcp or udp
	v4, v6  netip.AddrPort
	// local says that a traffic policy of Local applies: the internal one for a ClusterIP, the external one otherwise.
	local bool
	// loopback says that only the socket datapath serves it, and only for the node itself.
	loopback bool
}

func (f *frontend) addr(ipv6 bool) netip.AddrPort {
	if ipv6 {
		return f.v6
	}
	return f.v4
}

// clients returns who can dial the frontend.
func (f *frontend) clients() []string {
	if f.loopback {
		return []string{fromNode}
	}
	return clients
}

var frontends = []frontend{
	{service: "web", kind: datapath.ClusterIP, network: "tcp", v4: at("10.96.20.10:80"), v6: at("[fd00:10:96::2010]:80")},
	{service: "web", kind: datapath.NodePort, network: "tcp", v4: at("172.18.0.11:30080"), v6: at("[fd00:172:18::11]:30080")},
	{service: "web", kind: datapath.NodePort, network: "tcp", v4: at("127.0.0.1:30080"), v6: at("[::1]:30080"), loopback: true},
	{service: "api", kind: datapath.ClusterIP, network: "tcp", v4: at("10.96.20.20:8080"), v6: at("[fd00:10:96::2020]:8080")},
	{service: "cache", kind: datapath.ClusterIP, network: "tcp", v4: at("10.96.20.30:6379"), v6: at("[fd00:10:96::2030]:6379"), local: true},
	{service: "dns", kind: datapath.ClusterIP, network: "udp", v4: at("10.96.0.10:53"), v6: at("[fd00:10:96::a]:53")},
	{service: "dns", kind: datapath.ClusterIP, network: "tcp", v4: at("10.96.0.10:53"), v6: at("[fd00:10:96::a]:53")},
	{service: "edge", kind: datapath.LoadBalancer, network: "tcp", v4: at("198.51.100.10:443"), v6: at("[2001:db8:51::10]:443"), local: true},
	{service: "edge", kind: datapath.LoadBalancer, network: "udp", v4: at("198.51.100.10:443"), v6: at("[2001:db8:51::10]:443"), local: true},
	{service: "edge", kind: datapath.NodePort, network: "tcp", v4: at("172.18.0.11:30443"), v6: at("[fd00:172:18::11]:30443"), local: true},
	{service: "syslog", kind: datapath.ExternalIP, network: "tcp", v4: at("203.0.113.10:514"), v6: at("[2001:db8:113::10]:514")},
	{service: "syslog", kind: datapath.ExternalIP, network: "udp", v4: at("203.0.113.10:514"), v6: at("[2001:db8:113::10]:514")},
	{service: "syslog", kind: datapath.NodePort, network: "udp", v4: at("172.18.0.11:30514"), v6: at("[fd00:172:18::11]:30514")},
	{service: "reports", kind: datapath.ClusterIP, network: "tcp", v4: at("10.96.20.60:80"), v6: at("[fd00:10:96::2060]:80")},
	{service: "reports", kind: datapath.ClusterIP, network: "udp", v4: at("10.96.20.60:8125"), v6: at("[fd00:10:96::2060]:8125")},
}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// backends are the pods that new connections to each service may reach at some time.
type backends map[string][]string

// firstBackends are the backends in examples/ as they come.
func firstBackends() backends {
	b := backends{}
	for _, p := range pods {
		if p.service != "" && !p.dormant {
			b[p.service] = append(b[p.service], p.name)
		}
	}
	return b
}

// expectation is what a connection has to come to.
type expectation struct {
	backends []string // nobody means that the connection is refused
	source   string   // whose address these see
	// forbidden says that a refusal may be EPERM: what the kernel tells a UDP socket whose packet was rejected on its way out.
	forbidden bool
}

// expect says what has to become of a connection from client to f. sockets says that a hook serves sockets on the node.
func expect(f *frontend, client string, now backends, sockets bool) expectation {
	e := expectation{source: client, forbidden: client == fromNode && f.network == "udp"}
	if f.loopback && !sockets {
		return e
	}
	onNodeOnly := f.local && (f.kind == datapath.ClusterIP || client == fromOutside)
	for _, name := range now[f.service] {
		i := slices.IndexFunc(pods, func(p pod) bool { return p.name == name })
		if !onNodeOnly || pods[i].node == "node" {
			e.backends = append(e.backends, name)
		}
	}
	// A packet that has to come back this way is masqueraded, and a pod's to an external address as well unless the policy is
	// Local. A socket that the hook has connected to a pod keeps its own address.
	masqueraded := client == fromOutside && (!f.local || f.kind == datapath.ClusterIP) ||
		client == fromPod && f.kind != datapath.ClusterIP && !f.local && !sockets
	if masqueraded {
		e.source = fromNode
	}
	return e
}

// owners says whose an address is. Those of the node on its links to pods are the node's.
func owners() map[netip.Addr]string {
	m := map[netip.Addr]string{
		netip.MustParseAddr("172.18.0.11"): fromNode, netip.MustParseAddr("fd00:172:18::11"): fromNode,
		netip.MustParseAddr("172.18.0.100"): fromOutside, netip.MustParseAddr("fd00:172:18::100"): fromOutside,
		lab.NodePods4.Addr().Next(): fromNode, lab.NodePods6.Addr().Next(): fromNode,
	}
	for i, p := range pods {
		v4, v6 := addrs(i)
		m[v4], m[v6] = p.name, p.name
	}
	return m
}

// policy says what is special about the frontend.
func (f *frontend) policy() string {
	switch {
	case targets[f.service].port == 0:
		return "no endpoints"
	case f.loopback:
		return "at the socket only"
	case f.local && f.kind == datapath.ClusterIP:
		return "internalTrafficPolicy: Local"
	case f.local:
		return "externalTrafficPolicy: Local"
	}
	return ""
}
