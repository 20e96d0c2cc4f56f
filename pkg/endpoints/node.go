package endpoints

import (
	"fmt"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// node is what this package reads of the own Node.
type node struct {
	name, zone string
	primary    []netip.Addr // first address of each family: internal ones go before external ones
	podCIDRs   []netip.Prefix
}

func readNode(o *v1.Node) (*node, []fault) {
	n := &node{name: o.Name, zone: o.Labels[v1.LabelTopologyZone]}
	var faults []fault
	for _, kind := range []v1.NodeAddressType{v1.NodeInternalIP, v1.NodeExternalIP} {
		for i, addr := range o.Status.Addresses {
			if addr.Type != kind {
				continue
			}
			a, err := parseAddr(addr.Address)
			if err != nil {
				faults = append(faults, faultf(fmt.Sprintf("status.addresses[%d]", i), "%v", err))
				continue
			}
			if !slices.ContainsFunc(n.primary, func(b netip.Addr) bool { return a.Is6() == b.Is6() }) {
				n.primary = append(n.primary, a)
			}
		}
	}
	for i, s := range o.Spec.PodCIDRs {
		p, err := parsePrefix(s)
		if err != nil {
			faults = append(faults, faultf(fmt.Sprintf("spec.podCIDRs[%d]", i), "%v", err))
			continue
		}
		n.podCIDRs = append(n.podCIDRs, p)
	}
	return n, faults
}

// scene is everything outside a Service that its resolution depends on: the configuration, the own Node and
// the node's addresses, boiled down.
type scene struct {
	nodeName, zone string
	masqueradeAll  bool
	externalIPs    bool
	localPods      datapath.LocalPods
	primary        []netip.Addr // the node's address in each family
	nodePorts      []netip.Addr // NodePorts answer on these
}

// newScene computes the scene. n is nil as long as there is no Node object; addrs is nil as long as nobody
// said which addresses the node has.
func newScene(c *Config, n *node, addrs []netip.Addr) *scene {
	s := &scene{nodeName: c.NodeName, masqueradeAll: c.MasqueradeAll, externalIPs: c.ExternalIPs}
	var podCIDRs []netip.Prefix
	var primary []netip.Addr
	if n != nil {
		s.nodeName, s.zone, podCIDRs, primary = n.name, n.zone, n.podCIDRs, n.primary
	} else {
		primary = firstOfFamily(addrs)
	}
	s.primary = primary
	s.localPods = c.localPods(podCIDRs)
	prefixes, _ := c.nodePortPrefixes()
	if c.nodePortsOnPrimary() {
		for _, a := range primary {
			prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if addrs == nil {
		addrs = primary
	}
	s.nodePorts = nodePortAddrs(prefixes, addrs)
	if c.LocalhostNodePorts {
		s.nodePorts = append(s.nodePorts, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback())
	}
	return s
}

// podsKnown says whether pods of a family can be told from others. Per family, because a cluster CIDR of one
// family says nothing about the other.
func (s *scene) podsKnown(ipv6 bool) bool {
	return len(s.localPods.Interfaces) > 0 ||
		slices.ContainsFunc(s.localPods.CIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() == ipv6 })
}

// nodePortAddrs returns the addresses in the prefixes, sorted. A family without a prefix matches all, as in
// kube-proxy. Link-local addresses count only where a prefix names them: they exist on many
// interfaces and mean nothing without one. Loopback addresses never do; see Config.LocalhostNodePorts.
func nodePortAddrs(prefixes []netip.Prefix, addrs []netip.Addr) []netip.Addr {
	var named [2]bool
	for _, p := range prefixes {
		named[family(p.Addr().Is6())] = true
	}
	var list []netip.Addr
	for _, a := range addrs {
		kind := special(a)
		if kind != "" && !a.IsLinkLocalUnicast() {
			continue
		}
		if named[family(a.Is6())] {
			if !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) && (kind == "" || p.Bits() > 0) }) {
				continue
			}
		} else if kind != "" {
			continue
		}
		list = append(list, a)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// firstOfFamily returns the first ordinary unicast address of each family.
func firstOfFamily(addrs []netip.Addr) []netip.Addr {
	var list []netip.Addr
	for _, a := range addrs {
		if special(a) == "" && !slices.ContainsFunc(list, func(b netip.Addr) bool { return a.Is6() == b.Is6() }) {
			list = append(list, a)
		}
	}
	return list
}
