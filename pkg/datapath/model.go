package datapath

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"
)

// Protocol is a transport protocol by its IP protocol number.
type Protocol uint8

// The transport protocols a Service may have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns TCP, UDP, SCTP or the number.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Name names a Kubernetes Service.
type Name struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// String returns namespace/name.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names by namespace, then name.
func (n Name) Compare(m Name) int {
	return cmp.Or(cmp.Compare(n.Namespace, m.Namespace), cmp.Compare(n.Name, m.Name))
}

// Kind is why a frontend exists. Datapaths use it for two things only: a ClusterIP's address belongs to its
// Service alone, and a NodePort's address belongs to the node.
type Kind uint8

// The kinds of frontends.
const (
	ClusterIP Kind = iota
	NodePort
	LoadBalancer
	ExternalIP
)

// String returns the kind in the words of the Service API.
func (k Kind) String() string {
	switch k {
	case ClusterIP:
		return "ClusterIP"
	case NodePort:
		return "NodePort"
	case LoadBalancer:
		return "LoadBalancer"
	case ExternalIP:
		return "ExternalIP"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Backend is an address that serves: an endpoint, resolved.
type Backend struct {
	Addr netip.AddrPort
	// Local says that the backend runs on this node, so that a client may turn out to be its own backend.
	Local bool
}

// Compare orders backends by address, then port.
func (b Backend) Compare(c Backend) int { return b.Addr.Compare(c.Addr) }

// Clients is a set of kinds of clients, seen from this node.
type Clients uint8

// The kinds of clients. Which packets come from a local pod is the business of [LocalPods].
const (
	FromPods    Clients = 1 << iota // local pods
	FromNode                        // the node itself, host-network pods included
	FromOutside                     // everything else

	FromNobody   Clients = 0
	FromEveryone         = FromPods | FromNode | FromOutside
)

// Empty says what a client gets when its backend set is empty.
type Empty uint8

// Reject answers with an ICMP port unreachable (ECONNREFUSED for a TCP client): the Service has no usable
// backend anywhere. Drop is silence: backends exist, but the traffic policy keeps this client from them, and
// a load balancer in front should try another node.
const (
	Reject Empty = iota
	Drop
)

// String returns "reject" or "drop".
func (e Empty) String() string {
	if e == Drop {
		return "drop"
	}
	return "reject"
}

// Route leads a client to a backend set of its Port.
type Route struct {
	Set   int   // index into Port.Sets
	Empty Empty // what happens when that set is empty
}

// Addr is what a client dials: the identity of a frontend.
type Addr struct {
	netip.AddrPort
	Protocol Protocol
}

// String returns address:port/protocol.
func (a Addr) String() string { return a.AddrPort.String() + "/" + a.Protocol.String() }

// MarshalText is String: that of the embedded AddrPort would lose the protocol.
func (a Addr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Compare orders by address, port and protocol.
func (a Addr) Compare(b Addr) int {
	return cmp.Or(a.AddrPort.Compare(b.AddrPort), cmp.Compare(a.Protocol, b.Protocol))
}

// Frontend is an address a client dials, and what becomes of the connection.
type Frontend struct {
	Kind Kind
	IP   netip.Addr // never unspecified, never an IPv4-mapped IPv6 address
	Port uint16     // in host byte order

	Inside     Route   // for clients on this node: pods and the node itself
	Outside    Route   // for everybody else
	Masquerade Clients // whose source address becomes the node's

	// Sources are the only client addresses that may connect; empty means everybody. The socket datapath,
	// which cannot know a client's address before it is bound, leaves such a frontend to nftables.
	Sources []netip.Prefix
}

// Port is one port of a Kubernetes Service in one address family.
type Port struct {
	Name     string
	Protocol Protocol
	IPv6     bool

	// Sets are the backend sets the routes of the frontends lead to, each sorted and without duplicates.
	Sets      [][]Backend
	Frontends []Frontend

	// Affinity is how long after its last new connection a client keeps its backend; 0 is no affinity.
	Affinity time.Duration
}

// Service is what the node must do for one Kubernetes Service. A Service is immutable once it was handed to
// a datapath.
type Service struct {
	Name  Name
	Ports []Port
}

// FrontendAddr returns the identity of frontend f of port p.
func (p *Port) FrontendAddr(f *Frontend) Addr {
	return Addr{netip.AddrPortFrom(f.IP, f.Port), p.Protocol}
}

// LocalPods tells packets of this node's pods from all others. The zero value knows no pods: then nothing is
// masqueraded for want of being a pod, as kube-proxy has it without a detector.
type LocalPods struct {
	CIDRs      []netip.Prefix // sources that are pods
	Interfaces []string       // input interfaces that are pods'; a trailing * matches the rest of the name
}

// Known says whether there is any way to tell a pod.
func (l LocalPods) Known() bool { return len(l.CIDRs)+len(l.Interfaces) > 0 }
