package endpoints

import (
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// candidate is an endpoint of one service port: an address that might become a backend.
type candidate struct {
	addr netip.AddrPort
	*endpoint
	local bool
}

// candidates merges what all slices of a Service say about one of its ports, sorted, each address once.
//
// The same address may be in two slices while an endpoint moves between them, or when a pod got the address
// of one that is still terminating. An entry that is not terminating then wins over one that is; the last one wins
// among several (slices come ordered by name, so that the winner is always the same).
func candidates(list []*slice, p *servicePort, ipv6 bool, nodeName string) []candidate {
	var all []candidate
	for _, s := range list {
		if s.ipv6 != ipv6 {
			continue
		}
		for _, sp := range s.ports {
			if sp.name != p.name || sp.protocol != p.protocol {
				continue
			}
			all = slices.Grow(all, len(s.endpoints))
			for i := range s.endpoints {
				e := &s.endpoints[i]
				all = append(all, candidate{netip.AddrPortFrom(e.addr, sp.port), e, e.node.has(nodeName)})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return a.addr.Compare(b.addr) })
	merged := all[:0]
	for _, c := range all {
		last := len(merged) - 1
		switch {
		case last < 0 || merged[last].addr != c.addr:
			merged = append(merged, c)
		case !c.terminating:
			merged[last] = c
		}
	}
	return merged
}

// selection is who may serve one service port, as kube-proxy's CategorizeEndpoints has it.
type selection struct {
	cluster []datapath.Backend // for traffic policy Cluster
	local   []datapath.Backend // for traffic policy Local
	hasAny  bool               // whether anybody in the cluster can serve
}

// selectBackends decides by conditions and topology hints. For each policy by itself: ready endpoints, or if
// there is none, those that still serve while they terminate. Hints narrow the ready endpoints of the
// cluster only; they never touch the local ones, nor terminating ones.
func selectBackends(all []candidate, nodeName, zone string) selection {
	near := nearness(all, nodeName, zone)
	s := selection{
		cluster: filter(all, func(c *candidate) bool { return c.ready && near(c) }),
		local:   filter(all, func(c *candidate) bool { return c.ready && c.local }),
		hasAny:  slices.ContainsFunc(all, func(c candidate) bool { return c.usable() }),
	}
	if len(s.cluster) == 0 {
		s.cluster = filter(all, func(c *candidate) bool { return c.draining() })
	}
	if len(s.local) == 0 {
		s.local = filter(all, func(c *candidate) bool { return c.draining() && c.local })
	}
	return s
}

// nearness returns the test that the topology hints ask for. Hints count only if every ready endpoint has one
// (else the controller is in the middle of a change, and who has none would be cut off), and if one names
// this node or zone. Hints for nodes go before hints for zones.
func nearness(all []candidate, nodeName, zone string) func(*candidate) bool {
	forNode, forZone := true, true         // every ready endpoint has such a hint
	hasForNode, hasForZone := false, false // one names this node or zone
	for i := range all {
		if c := &all[i]; c.ready {
			forNode = forNode && !c.nodeHints.empty()
			forZone = forZone && !c.zoneHints.empty()
			hasForNode = hasForNode || c.nodeHints.has(nodeName)
			hasForZone = hasForZone || c.zoneHints.has(zone)
		}
	}
	switch {
	case forNode && hasForNode:
		return func(c *candidate) bool { return c.nodeHints.has(nodeName) }
	case forZone && hasForZone:
		return func(c *candidate) bool { return c.zoneHints.has(zone) }
	}
	return func(*candidate) bool { return true }
}

func filter(all []candidate, keep func(*candidate) bool) []datapath.Backend {
	n := 0
	for i := range all {
		if keep(&all[i]) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	list := make([]datapath.Backend, 0, n)
	for i := range all {
		if keep(&all[i]) {
			list = append(list, datapath.Backend{Addr: all[i].addr, Local: all[i].local})
		}
	}
	return list
}
