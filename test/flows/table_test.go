package flows_test

// client is who dials.
type client string

const (
	pod     client = "pod"     // on the node
	node    client = "node"    // a process in the node's own network namespace
	outside client = "outside" // not in the cluster
)

// frontend is which address of a Service is dialed.
type frontend string

const (
	clusterIP    frontend = "clusterIP"
	nodePort     frontend = "nodePort"              // on the node's own address
	otherAddress frontend = "nodePort on another"   // address of the node, one that --nodeport-addresses excludes
	loopback     frontend = "nodePort on loopback"  // 127.0.0.1 and ::1
	otherNode    frontend = "nodePort on the other" // node
	vip          frontend = "LoadBalancer VIP"
	externalIP   frontend = "externalIP"
)

// source is whose address the backend sees.
type source string

const (
	own        source = "the client's own address"
	masquerade source = "an address of the node"
)

// outcome is what becomes of a connection.
type outcome struct {
	backends []string // exactly these answer, given time
	source   source
	failure  failure
}

type failure string

const (
	none        failure = ""
	refused     failure = "refused"
	silence     failure = "silence"
	unreachable failure = "unreachable" // it went past the node, to the router
	forbidden   failure = "forbidden"   // EPERM: what nftables drops or rejects in output, as far as a UDP socket is told
)

func by(s source, backends ...string) outcome { return outcome{backends: backends, source: s} }

// flow is a row of the table.
type flow struct {
	row     string
	client  client
	to      frontend
	service string
	want    outcome

	// atSocket is what the socket hook makes of it instead, nil if that follows from the general rule: a client on
	// this node connects straight to the backend, so that the backend sees the client's own address.
	atSocket *outcome
}

// expected returns the outcome with or without the socket hook.
func (f *flow) expected(v variant, hook bool) outcome {
	o := f.want
	switch {
	case f.client == outside:
	case hook && f.atSocket != nil:
		return *f.atSocket
	case hook && o.failure == none:
		o.source = own
	case hook && o.failure == refused && !v.connected:
		// The hook itself says so. It lets a UDP socket connect, for there may be a backend by the time it sends.
	case f.client == node && f.to != loopback && v.network == "udp" && (o.failure == refused || o.failure == silence):
		o.failure = forbidden
	}
	return o
}

// The backends of the Services: a is a pod on the node, b and c are pods on the other node. self is the client pod.
var (
	fromAll   = []string{"a", "b", "c"}
	fromLocal = []string{"a"}
	fromOther = []string{"b", "c"}

	drops   = outcome{failure: silence}
	rejects = outcome{failure: refused}
	passes  = outcome{failure: unreachable}
)

// table holds with pods known by the cluster CIDR.
var table = []flow{
	{row: "1", client: pod, to: clusterIP, service: "cluster", want: by(own, fromAll...)},
	{row: "2", client: pod, to: clusterIP, service: "self", want: by(masquerade, "self")},
	{row: "2", client: pod, to: nodePort, service: "self", want: by(masquerade, "self")},
	{row: "2", client: pod, to: vip, service: "self", want: by(masquerade, "self")},
	{row: "3", client: pod, to: clusterIP, service: "internal-local", want: by(own, fromLocal...)},
	{row: "3 none", client: pod, to: clusterIP, service: "internal-local-none", want: drops},
	{row: "4", client: node, to: clusterIP, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "4 local", client: node, to: clusterIP, service: "internal-local", want: by(masquerade, fromLocal...)},
	{row: "4 none", client: node, to: clusterIP, service: "internal-local-none", want: drops},
	{row: "5", client: outside, to: clusterIP, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "5 local", client: outside, to: clusterIP, service: "internal-local", want: by(masquerade, fromLocal...)},
	{row: "5 none", client: outside, to: clusterIP, service: "internal-local-none", want: drops},

	{row: "6", client: pod, to: nodePort, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "7", client: pod, to: nodePort, service: "external-local", want: by(own, fromAll...)},
	{row: "7 none", client: pod, to: nodePort, service: "external-local-none", want: by(own, fromOther...)},
	{row: "8", client: pod, to: otherNode, service: "cluster", want: by(own, "node2")},
	{row: "8 local", client: pod, to: otherNode, service: "external-local", want: by(own, "node2")},
	{row: "9", client: node, to: nodePort, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "9 local", client: node, to: nodePort, service: "external-local", want: by(masquerade, fromAll...)},
	{row: "10", client: node, to: otherNode, service: "external-local", want: by(own, "node2")},
	{row: "11", client: outside, to: nodePort, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "12", client: outside, to: nodePort, service: "external-local", want: by(own, fromLocal...)},
	{row: "12 none", client: outside, to: nodePort, service: "external-local-none", want: drops},
	{row: "13", client: outside, to: otherAddress, service: "cluster", want: rejects},

	// kube-proxy leaves loopback alone with nftables; the hook needs no routing for it. A pod's loopback is its own.
	{row: "15", client: node, to: loopback, service: "cluster", want: rejects, atSocket: atSocket(by(own, fromAll...))},
	{row: "15 pod", client: pod, to: loopback, service: "cluster", want: rejects},

	{row: "16", client: pod, to: vip, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "17", client: pod, to: vip, service: "external-local", want: by(own, fromAll...)},
	{row: "17 none", client: pod, to: vip, service: "external-local-none", want: by(own, fromOther...)},
	{row: "18", client: node, to: vip, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "18 local", client: node, to: vip, service: "external-local", want: by(masquerade, fromAll...)},
	{row: "18 none", client: node, to: vip, service: "external-local-none", want: by(masquerade, fromOther...)},
	{row: "19", client: outside, to: vip, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "19 local", client: outside, to: vip, service: "external-local", want: by(own, fromLocal...)},
	{row: "19 none", client: outside, to: vip, service: "external-local-none", want: drops},

	{row: "23", client: pod, to: vip, service: "vip-elsewhere", want: passes},
	{row: "23", client: node, to: vip, service: "vip-elsewhere", want: passes},
	{row: "23", client: outside, to: vip, service: "vip-elsewhere", want: passes},

	{row: "24", client: pod, to: externalIP, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "24 local", client: pod, to: externalIP, service: "external-local", want: by(own, fromAll...)},
	{row: "24", client: node, to: externalIP, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "24 local", client: node, to: externalIP, service: "external-local", want: by(masquerade, fromAll...)},
	{row: "24", client: outside, to: externalIP, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "24 local", client: outside, to: externalIP, service: "external-local", want: by(own, fromLocal...)},
	{row: "24 none", client: outside, to: externalIP, service: "external-local-none", want: drops},

	// The internal policy means nothing to external addresses, and the other way round.
	{row: "25/6", client: pod, to: nodePort, service: "internal-local", want: by(masquerade, fromAll...)},
	{row: "25/9", client: node, to: nodePort, service: "internal-local-none", want: by(masquerade, fromOther...)},
	{row: "25/11", client: outside, to: nodePort, service: "internal-local", want: by(masquerade, fromAll...)},
	{row: "25/16", client: pod, to: vip, service: "internal-local-none", want: by(masquerade, fromOther...)},
	{row: "25/18", client: node, to: vip, service: "internal-local", want: by(masquerade, fromAll...)},
	{row: "25/19", client: outside, to: vip, service: "internal-local-none", want: by(masquerade, fromOther...)},
	{row: "26/1", client: pod, to: clusterIP, service: "external-local", want: by(own, fromAll...)},
	{row: "26/1", client: pod, to: clusterIP, service: "external-local-none", want: by(own, fromOther...)},
	{row: "26/4", client: node, to: clusterIP, service: "external-local", want: by(masquerade, fromAll...)},
	{row: "26/5", client: outside, to: clusterIP, service: "external-local", want: by(masquerade, fromAll...)},

	// Backends that are terminating but still serve are better than none.
	{row: "30/1", client: pod, to: clusterIP, service: "terminating", want: by(own, "a", "b")},
	{row: "30/4", client: node, to: clusterIP, service: "terminating", want: by(masquerade, "a", "b")},
	{row: "30/11", client: outside, to: nodePort, service: "terminating", want: by(masquerade, "a", "b")},
	{row: "30/12", client: outside, to: nodePort, service: "terminating-local", want: by(own, fromLocal...)},
	{row: "30/17", client: pod, to: vip, service: "terminating-local", want: by(own, fromOther...)},
	{row: "30/19", client: outside, to: vip, service: "terminating-local", want: by(own, fromLocal...)},

	{row: "31", client: pod, to: clusterIP, service: "empty", want: rejects},
	{row: "31", client: node, to: clusterIP, service: "empty", want: rejects},
	{row: "31", client: outside, to: clusterIP, service: "empty", want: rejects},
	{row: "31", client: pod, to: nodePort, service: "empty", want: rejects},
	{row: "31", client: node, to: nodePort, service: "empty", want: rejects},
	{row: "31", client: outside, to: nodePort, service: "empty", want: rejects},
	{row: "31", client: pod, to: vip, service: "empty", want: rejects},
	{row: "31", client: node, to: vip, service: "unready", want: rejects},
	{row: "31", client: outside, to: vip, service: "unready", want: rejects},
	{row: "31", client: pod, to: externalIP, service: "unready", want: rejects},
	{row: "31", client: outside, to: externalIP, service: "empty", want: rejects},
	{row: "31", client: pod, to: clusterIP, service: "unready", want: rejects},

	{row: "35", client: pod, to: clusterIP, service: "host-network", want: by(own, "node2")},
	{row: "35 own", client: pod, to: clusterIP, service: "own-host-network", want: by(own, "node")},
	{row: "36", client: node, to: clusterIP, service: "own-host-network", want: by(masquerade, "node")},
}

// withoutDetector holds where nothing tells pods from others. An outside client's address stays too, so a remote backend
// would answer it past this node: only a local one can be had.
var withoutDetector = []flow{
	{row: "27", client: pod, to: clusterIP, service: "cluster", want: by(own, fromAll...)},
	{row: "27", client: node, to: clusterIP, service: "cluster", want: by(own, fromAll...)},
	{row: "27", client: outside, to: clusterIP, service: "internal-local", want: by(own, fromLocal...)},
	// The hook needs nobody to tell it that the client is on this node.
	{row: "28", client: pod, to: nodePort, service: "external-local", want: by(own, fromLocal...), atSocket: atSocket(by(own, fromAll...))},
	{row: "28", client: pod, to: vip, service: "external-local", want: by(own, fromLocal...), atSocket: atSocket(by(own, fromAll...))},
	{row: "28/12", client: outside, to: nodePort, service: "external-local", want: by(own, fromLocal...)},
	{row: "28/11", client: outside, to: nodePort, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "28/18", client: node, to: vip, service: "external-local", want: by(masquerade, fromAll...)},
}

// masqueradeAll holds where every connection to a ClusterIP is masqueraded by order.
var masqueradeAll = []flow{
	{row: "29", client: pod, to: clusterIP, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "29", client: node, to: clusterIP, service: "cluster", want: by(masquerade, fromAll...)},
	{row: "29", client: outside, to: clusterIP, service: "internal-local", want: by(masquerade, fromLocal...)},
	{row: "29/12", client: outside, to: nodePort, service: "external-local", want: by(own, fromLocal...)},
	{row: "29/17", client: pod, to: vip, service: "external-local", want: by(own, fromAll...)},
}

func atSocket(o outcome) *outcome { return &o }
