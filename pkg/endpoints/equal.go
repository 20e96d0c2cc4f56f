package endpoints

import (
	"slices"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

func (s *service) hasNodePort() bool {
	return slices.ContainsFunc(s.ports, func(p servicePort) bool { return p.nodePort != 0 })
}

func (s *service) equal(t *service) bool {
	if s == nil || t == nil {
		return s == t
	}
	return s.name == t.name && s.created == t.created && s.clusterIPs == t.clusterIPs &&
		slices.Equal(s.vips, t.vips) && slices.Equal(s.external, t.external) &&
		slices.Equal(s.sources, t.sources) && s.badSource == t.badSource &&
		slices.Equal(s.ports, t.ports) && s.affinity == t.affinity &&
		s.internalLocal == t.internalLocal && s.externalLocal == t.externalLocal
}

func (s *slice) equal(t *slice) bool {
	return s.name == t.name && s.ipv6 == t.ipv6 && slices.Equal(s.ports, t.ports) && slices.Equal(s.endpoints, t.endpoints)
}

func equalLocalPods(a, b *datapath.LocalPods) bool {
	return slices.Equal(a.CIDRs, b.CIDRs) && slices.Equal(a.Interfaces, b.Interfaces)
}

// equalServices says whether a datapath would do the same for both.
func equalServices(a, b *datapath.Service) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name && slices.EqualFunc(a.Ports, b.Ports, func(p, q datapath.Port) bool {
		return p.Name == q.Name && p.Protocol == q.Protocol && p.IPv6 == q.IPv6 && p.Affinity == q.Affinity &&
			slices.EqualFunc(p.Sets, q.Sets, slices.Equal[[]datapath.Backend]) &&
			slices.EqualFunc(p.Frontends, q.Frontends, equalFrontends)
	})
}

func equalFrontends(f, g datapath.Frontend) bool {
	return f.Kind == g.Kind && f.IP == g.IP && f.Port == g.Port && f.Inside == g.Inside && f.Outside == g.Outside &&
		f.Masquerade == g.Masquerade && slices.Equal(f.Sources, g.Sources)
}
