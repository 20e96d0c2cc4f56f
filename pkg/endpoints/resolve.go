package endpoints

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// Resolve decides what the node has to do for one Service, looked at alone. Slices of other Services are
// ignored, own may be nil. The result is nil if the Service has no frontend here. A [Store] does the same
// for many Services and settles who owns an address that several claim.
func Resolve(c Config, own *v1.Node, o *v1.Service, endpointSlices []*discovery.EndpointSlice) (*datapath.Service, []Problem) {
	var list []Problem
	note := func(object string, faults []fault) {
		for _, f := range faults {
			list = append(list, Problem{object, f.field, f.text})
		}
	}
	var n *node
	if own != nil {
		var faults []fault
		n, faults = readNode(own)
		note(nodeObject(own.Name), faults)
	}
	svc, faults := readService(o)
	note(serviceObject(datapath.Name{Namespace: o.Namespace, Name: o.Name}), faults)
	var read []*slice
	for _, es := range endpointSlices {
		owner, s, faults := readSlice(es)
		note(sliceObject(datapath.Name{Namespace: es.Namespace, Name: es.Name}), faults)
		if s != nil && svc != nil && owner == svc.name {
			read = append(read, s)
		}
	}
	if svc == nil {
		return nil, list
	}
	slices.SortFunc(read, compareSlices)
	return newScene(&c, n, nil).resolve(svc, read, func(datapath.Addr) bool { return true }), list
}

// resolve returns nil if nothing is left of the Service. granted says whether the Service owns an address.
func (s *scene) resolve(svc *service, endpointSlices []*slice, granted func(datapath.Addr) bool) *datapath.Service {
	r := resolution{scene: s, svc: svc, slices: endpointSlices, granted: granted, taken: map[datapath.Addr]bool{}}
	out := &datapath.Service{Name: svc.name}
	for i := range svc.ports {
		for _, ipv6 := range []bool{false, true} {
			if p, ok := r.port(&svc.ports[i], ipv6); ok {
				out.Ports = append(out.Ports, p)
			}
		}
	}
	if len(out.Ports) == 0 {
		return nil
	}
	return out
}

// resolution is one run of resolve.
type resolution struct {
	*scene
	svc     *service
	slices  []*slice
	granted func(datapath.Addr) bool
	taken   map[datapath.Addr]bool // by an earlier frontend of this Service
}

func (r *resolution) port(p *servicePort, ipv6 bool) (datapath.Port, bool) {
	var list []address
	for _, a := range r.addresses(r.svc, p, ipv6) {
		if k := a.addr(p.protocol); !r.taken[k] && r.granted(k) {
			r.taken[k] = true
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		return datapath.Port{}, false
	}
	chosen := selectBackends(candidates(r.slices, p, ipv6, r.nodeName), r.nodeName, r.zone)
	out := datapath.Port{Name: p.name, Protocol: p.protocol, IPv6: ipv6, Affinity: r.svc.affinity}
	sources := r.sources(r.svc, ipv6)
	out.Frontends = make([]datapath.Frontend, 0, len(list))
	for _, a := range list {
		f := datapath.Frontend{Kind: a.kind, IP: a.ip, Port: a.port,
			Masquerade: r.masquerade(a.kind, r.svc.externalLocal, ipv6)}
		f.Inside, f.Outside = routes(&out, r.svc, a.kind, &chosen)
		if a.kind == datapath.LoadBalancer {
			f.Sources = sources
		}
		out.Frontends = append(out.Frontends, f)
	}
	return out, true
}

// routes leads the clients of a frontend to the sets of their traffic policy. Behind an external address with
// policy Local, clients on this node still get the whole cluster: they stand for traffic that would leave
// the node and come back through the load balancer.
func routes(p *datapath.Port, svc *service, kind datapath.Kind, chosen *selection) (inside, outside datapath.Route) {
	switch {
	case kind == datapath.ClusterIP && svc.internalLocal:
		inside = route(p, chosen.local, chosen.hasAny)
		return inside, inside
	case kind != datapath.ClusterIP && svc.externalLocal:
		return route(p, chosen.cluster, chosen.hasAny), route(p, chosen.local, chosen.hasAny)
	}
	inside = route(p, chosen.cluster, chosen.hasAny)
	return inside, inside
}

// route leads to the backends' set, which it adds to the port unless an equal one is there.
func route(p *datapath.Port, backends []datapath.Backend, hasAny bool) datapath.Route {
	i := slices.IndexFunc(p.Sets, func(set []datapath.Backend) bool { return slices.Equal(set, backends) })
	if i < 0 {
		i = len(p.Sets)
		p.Sets = append(p.Sets, backends)
	}
	r := datapath.Route{Set: i, Empty: datapath.Reject}
	if hasAny {
		r.Empty = datapath.Drop
	}
	return r
}
