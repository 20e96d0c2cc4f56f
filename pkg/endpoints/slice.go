package endpoints

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unique"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// slice is what this package reads of an EndpointSlice, checked and normalised.
type slice struct {
	name      string
	ipv6      bool
	ports     []slicePort
	endpoints []endpoint
}

type slicePort struct {
	name     string
	protocol datapath.Protocol
	port     uint16
}

// endpoint is one address of a slice. There are many of them, so the names, which repeat, are interned.
type endpoint struct {
	addr                        netip.Addr
	node                        names // the node it runs on; empty if unknown
	zoneHints, nodeHints        names
	ready, serving, terminating bool
}

// usable says whether the endpoint may ever get a connection: while it is ready, or, for want of a ready one,
// while it shuts down but still serves.
func (e *endpoint) usable() bool { return e.ready || e.draining() }

func (e *endpoint) draining() bool { return !e.ready && e.serving && e.terminating }

// names is an interned set of names.
type names struct{ h unique.Handle[string] }

// namesSeparator occurs in no name of a node or zone.
const namesSeparator = "\x00"

func newNames(list ...string) names {
	if len(list) == 0 || len(list) == 1 && list[0] == "" {
		return names{}
	}
	return names{unique.Make(strings.Join(list, namesSeparator))}
}

func (n names) empty() bool { return n == names{} }

// has says whether name is in the set. The empty name never is.
func (n names) has(name string) bool {
	if n.empty() || name == "" {
		return false
	}
	for part := range strings.SplitSeq(n.h.Value(), namesSeparator) {
		if part == name {
			return true
		}
	}
	return false
}

// intern returns s as a string shared with all others of its content.
func intern(s string) string { return unique.Make(s).Value() }

// readSlice returns the Service the slice is for, and nil if the slice is not used.
func readSlice(o *discovery.EndpointSlice) (datapath.Name, *slice, []fault) {
	owner := datapath.Name{Namespace: o.Namespace, Name: o.Labels[discovery.LabelServiceName]}
	if _, headless := o.Labels[labelHeadless]; headless {
		return owner, nil, nil
	}
	switch {
	case o.Name == "":
		return owner, nil, []fault{{"metadata.name", "is empty"}}
	case owner.Name == "":
		return owner, nil, []fault{faultf("metadata.labels", "%s is missing: the slice belongs to no Service", discovery.LabelServiceName)}
	case o.AddressType != discovery.AddressTypeIPv4 && o.AddressType != discovery.AddressTypeIPv6:
		return owner, nil, []fault{faultf("addressType", "%q is not one of IPv4, IPv6", clip(string(o.AddressType)))}
	}
	s := &slice{name: o.Name, ipv6: o.AddressType == discovery.AddressTypeIPv6}
	faults := s.readPorts(o.Ports)
	return owner, s, append(faults, s.readEndpoints(o.Endpoints)...)
}

func (s *slice) readPorts(list []discovery.EndpointPort) (faults []fault) {
	for i := range list {
		o, field := &list[i], fmt.Sprintf("ports[%d]", i)
		switch {
		case o.Name == nil:
			faults = append(faults, fault{field + ".name", "is missing"})
			continue
		case o.Port == nil:
			faults = append(faults, fault{field + ".port", "is missing: a slice for all ports is not supported"})
			continue
		}
		port, err := parsePort(*o.Port)
		if err != nil {
			faults = append(faults, faultf(field+".port", "%v", err))
			continue
		}
		var name v1.Protocol
		if o.Protocol != nil {
			name = *o.Protocol
		}
		protocol, err := parseProtocol(name)
		if err != nil {
			faults = append(faults, faultf(field+".protocol", "%v", err))
			continue
		}
		s.ports = append(s.ports, slicePort{intern(*o.Name), protocol, port})
	}
	return faults
}

func (s *slice) readEndpoints(list []discovery.Endpoint) (faults []fault) {
	s.endpoints = slices.Grow(s.endpoints, len(list))
	for i := range list {
		e, err := readEndpoint(&list[i], s.ipv6)
		if err != nil {
			// Beyond the limit only their number matters; see maxFaults.
			f := fault{}
			if len(faults) < maxFaults {
				f = faultf(fmt.Sprintf("endpoints[%d].addresses", i), "%v", err)
			}
			faults = append(faults, f)
			continue
		}
		s.endpoints = append(s.endpoints, e)
	}
	return faults
}

// readEndpoint reads the first address only: by the API's contract the others are the same endpoint.
func readEndpoint(o *discovery.Endpoint, ipv6 bool) (endpoint, error) {
	if len(o.Addresses) == 0 {
		return endpoint{}, fmt.Errorf("is empty")
	}
	a, err := parseUnicast(o.Addresses[0])
	if err != nil {
		return endpoint{}, err
	}
	if a.Is6() != ipv6 {
		return endpoint{}, fmt.Errorf("%s is not of the slice's addressType %s", a, familyName(ipv6))
	}
	e := endpoint{
		addr:        a,
		ready:       o.Conditions.Ready == nil || *o.Conditions.Ready,
		serving:     o.Conditions.Serving == nil || *o.Conditions.Serving,
		terminating: o.Conditions.Terminating != nil && *o.Conditions.Terminating,
	}
	if o.NodeName != nil {
		e.node = newNames(*o.NodeName)
	}
	if o.Hints != nil {
		e.zoneHints = hintNames(o.Hints.ForZones, func(z discovery.ForZone) string { return z.Name })
		e.nodeHints = hintNames(o.Hints.ForNodes, func(n discovery.ForNode) string { return n.Name })
	}
	return e, nil
}

// hintNames is not empty if there is any hint, even one that names nothing.
func hintNames[T any](hints []T, name func(T) string) names {
	if len(hints) == 0 {
		return names{}
	}
	list := make([]string, 0, len(hints)+1)
	for _, h := range hints {
		list = append(list, name(h))
	}
	if len(list) == 1 && list[0] == "" {
		list = append(list, "")
	}
	return newNames(list...)
}
