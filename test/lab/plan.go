package lab

import "net/netip"

// The addresses of the world. What is under test gets them as flags and objects.
var (
	NodePods4     = netip.MustParsePrefix("10.244.1.0/24")
	NodePods6     = netip.MustParsePrefix("fd00:10:244:1::/64")
	Node2Pods4    = netip.MustParsePrefix("10.244.2.0/24")
	Node2Pods6    = netip.MustParsePrefix("fd00:10:244:2::/64")
	Cluster4      = netip.MustParsePrefix("10.244.0.0/16")
	Cluster6      = netip.MustParsePrefix("fd00:10:244::/48")
	Services4     = netip.MustParsePrefix("10.96.0.0/16")
	Services6     = netip.MustParsePrefix("fd00:10:96::/112")
	LoadBalancer4 = netip.MustParsePrefix("198.51.100.0/24")
	LoadBalancer6 = netip.MustParsePrefix("2001:db8:51::/64")
	External4     = netip.MustParsePrefix("203.0.113.0/24")
	External6     = netip.MustParsePrefix("2001:db8:113::/64")
)

// Uplink is the name of the interface every host reaches the world through.
const Uplink = "eth0"

// pair is an IPv4 and an IPv6 address, each with the prefix length of its network.
type pair [2]netip.Prefix

var (
	routerAddr  = pair{netip.MustParsePrefix("172.18.0.1/24"), netip.MustParsePrefix("fd00:172:18::1/64")}
	nodeAddr    = pair{netip.MustParsePrefix("172.18.0.11/24"), netip.MustParsePrefix("fd00:172:18::11/64")}
	node2Addr   = pair{netip.MustParsePrefix("172.18.0.12/24"), netip.MustParsePrefix("fd00:172:18::12/64")}
	outsideAddr = pair{netip.MustParsePrefix("172.18.0.100/24"), netip.MustParsePrefix("fd00:172:18::100/64")}

	nodePods  = pair{NodePods4, NodePods6}
	node2Pods = pair{Node2Pods4, Node2Pods6}

	// virtual is what only outside has a route for: it comes to node as a cloud's load balancer would send it.
	virtual = []pair{{Services4, Services6}, {LoadBalancer4, LoadBalancer6}, {External4, External6}}
)

// single returns the prefix that holds only a.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// everything returns the default route's destination in the family of a.
func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
