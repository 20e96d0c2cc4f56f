package endpoints

import (
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// address is one address of a service port: a frontend that is wanted, before it is known who else wants it and
// where it leads.
type address struct {
	kind datapath.Kind
	ip   netip.Addr
	port uint16
}

func (a address) addr(p datapath.Protocol) datapath.Addr {
	return datapath.Addr{AddrPort: netip.AddrPortFrom(a.ip, a.port), Protocol: p}
}

// addresses lists where a client may dial one port in one family. There is none in a family in which the Service
// has no ClusterIP. An address that comes up twice counts the first time: a load balancer's VIP goes before the
// same address as external IP, because its source ranges must hold.
func (s *scene) addresses(svc *service, p *servicePort, ipv6 bool) []address {
	clusterIP := svc.clusterIPs[family(ipv6)]
	if !clusterIP.IsValid() {
		return nil
	}
	list := []address{{datapath.ClusterIP, clusterIP, p.port}}
	add := func(kind datapath.Kind, ips []netip.Addr, port uint16) {
		for _, ip := range ips {
			if ip.Is6() == ipv6 {
				list = append(list, address{kind, ip, port})
			}
		}
	}
	add(datapath.LoadBalancer, svc.vips, p.port)
	if s.externalIPs {
		add(datapath.ExternalIP, svc.external, p.port)
	}
	if p.nodePort != 0 {
		add(datapath.NodePort, s.nodePorts, p.nodePort)
	}
	return list
}

// claims returns every address the Service wants, each once.
func (s *scene) claims(svc *service) []datapath.Addr {
	var list []datapath.Addr
	seen := map[datapath.Addr]bool{}
	for i := range svc.ports {
		p := &svc.ports[i]
		for _, ipv6 := range []bool{false, true} {
			for _, a := range s.addresses(svc, p, ipv6) {
				if k := a.addr(p.protocol); !seen[k] {
					seen[k] = true
					list = append(list, k)
				}
			}
		}
	}
	return list
}

// masquerade says whose source address becomes the node's.
//
// To a ClusterIP: everybody's by order, else that of whoever is no pod, because the reply of a remote pod has to come
// back through this node. Without a way to tell pods nobody's. To an external address: everybody's with policy
// Cluster. With policy Local the client's address is to be kept: outside clients get a local backend, pods are
// answered directly, and only the node itself may get a remote one.
func (s *scene) masquerade(kind datapath.Kind, externalLocal, ipv6 bool) datapath.Clients {
	switch {
	case kind != datapath.ClusterIP && externalLocal:
		return datapath.FromNode
	case kind != datapath.ClusterIP || s.masqueradeAll:
		return datapath.FromEveryone
	case s.podsKnown(ipv6):
		return datapath.FromNode | datapath.FromOutside
	}
	return datapath.FromNobody
}

// sources returns the addresses that may connect to the load balancer's VIPs; none means everybody. Where the VIP is
// bound on a node that may connect, the node's own connections come from the VIP.
func (s *scene) sources(svc *service, ipv6 bool) []netip.Prefix {
	ranges := svc.sourcesOf(ipv6)
	mayConnect := slices.ContainsFunc(s.primary, func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	})
	if !mayConnect {
		return ranges
	}
	for _, vip := range svc.vips {
		if vip.Is6() == ipv6 {
			ranges = append(ranges, netip.PrefixFrom(vip, vip.BitLen()))
		}
	}
	return ranges
}
