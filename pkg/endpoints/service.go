package endpoints

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// service is what this package reads of a v1.Service, checked and normalised. It keeps nothing of the API
// object alive but a few strings.
type service struct {
	name       datapath.Name
	created    int64          // creationTimestamp in Unix seconds, the API's resolution
	clusterIPs [2]netip.Addr  // by family (IPv4, IPv6); invalid if the Service has none
	vips       []netip.Addr   // of status.loadBalancer, those served as VIPs
	external   []netip.Addr   // spec.externalIPs
	sources    []netip.Prefix // spec.loadBalancerSourceRanges
	badSource  bool           // one of them could not be read
	ports      []servicePort
	affinity   time.Duration
	// The traffic policies; each is true for Local.
	internalLocal, externalLocal bool
}

type servicePort struct {
	name     string
	protocol datapath.Protocol
	port     uint16
	nodePort uint16 // 0 if none
}

const (
	labelProxyName  = "service.kubernetes.io/service-proxy-name"
	labelHeadless   = v1.IsHeadlessService
	defaultAffinity = v1.DefaultClientIPServiceAffinitySeconds
	maxAffinity     = 86400
)

// family indexes arrays by address family.
func family(ipv6 bool) int {
	if ipv6 {
		return 1
	}
	return 0
}

func familyName(ipv6 bool) string {
	if ipv6 {
		return "IPv6"
	}
	return "IPv4"
}

// readService returns nil if the Service is none of ours: headless, ExternalName, another proxy's, or too broken
// to have any frontend.
func readService(o *v1.Service) (*service, []fault) {
	if o.Name == "" {
		return nil, []fault{{"metadata.name", "is empty"}}
	}
	if _, other := o.Labels[labelProxyName]; other || o.Spec.Type == v1.ServiceTypeExternalName || o.Spec.ClusterIP == v1.ClusterIPNone {
		return nil, nil
	}
	r := serviceReader{o: o, s: &service{
		name:          datapath.Name{Namespace: o.Namespace, Name: o.Name},
		created:       o.CreationTimestamp.Unix(),
		internalLocal: o.Spec.InternalTrafficPolicy != nil && *o.Spec.InternalTrafficPolicy == v1.ServiceInternalTrafficPolicyLocal,
		externalLocal: externalPolicyLocal(o),
	}}
	if !r.clusterIPs() {
		return nil, r.faults
	}
	r.ports()
	r.addresses()
	r.sources()
	r.affinity()
	return r.s, r.faults
}

// externalPolicyLocal ignores externalTrafficPolicy where kube-proxy does: on Services that are not reachable
// from outside by their spec.
func externalPolicyLocal(o *v1.Service) bool {
	accessible := o.Spec.Type == v1.ServiceTypeLoadBalancer || o.Spec.Type == v1.ServiceTypeNodePort ||
		len(o.Spec.ExternalIPs) > 0
	return accessible && o.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal
}

type serviceReader struct {
	o      *v1.Service
	s      *service
	faults []fault
}

func (r *serviceReader) fault(field, format string, args ...any) {
	r.faults = append(r.faults, faultf(field, format, args...))
}

// clusterIPs reads the ClusterIP of each family and says whether there is any. spec.ipFamilies, where set,
// must agree: it says which of the addresses the API server meant for which family.
func (r *serviceReader) clusterIPs() bool {
	spec := &r.o.Spec
	ips, field := spec.ClusterIPs, func(i int) string { return fmt.Sprintf("spec.clusterIPs[%d]", i) }
	if len(ips) == 0 {
		ips, field = []string{spec.ClusterIP}, func(int) string { return "spec.clusterIP" }
	}
	if len(ips) == 1 && ips[0] == "" {
		r.fault("spec.clusterIP", "is empty")
		return false
	}
	for i, s := range ips {
		a, err := parseUnicast(s)
		if err != nil {
			r.fault(field(i), "%v", err)
			continue
		}
		if i < len(spec.IPFamilies) && (spec.IPFamilies[i] == v1.IPv6Protocol) != a.Is6() {
			r.fault(field(i), "%s is not of family %s, as spec.ipFamilies[%d] says", a, clip(string(spec.IPFamilies[i])), i)
			continue
		}
		if f := family(a.Is6()); r.s.clusterIPs[f].IsValid() {
			r.fault(field(i), "%s is a second address of its family", a)
		} else {
			r.s.clusterIPs[f] = a
		}
	}
	return r.s.clusterIPs != [2]netip.Addr{}
}

func (r *serviceReader) ports() {
	type number struct {
		protocol datapath.Protocol
		port     uint16
	}
	type portName struct {
		name     string
		protocol datapath.Protocol
	}
	ports, nodePorts, names := map[number]bool{}, map[number]bool{}, map[portName]bool{}
	for i := range r.o.Spec.Ports {
		o := &r.o.Spec.Ports[i]
		field := fmt.Sprintf("spec.ports[%d]", i)
		protocol, err := parseProtocol(o.Protocol)
		if err != nil {
			r.fault(field+".protocol", "%v", err)
			continue
		}
		port, err := parsePort(o.Port)
		if err != nil {
			r.fault(field+".port", "%v", err)
			continue
		}
		if ports[number{protocol, port}] {
			r.fault(field+".port", "%d/%s is another port of the Service already", port, protocol)
			continue
		}
		if names[portName{o.Name, protocol}] {
			r.fault(field+".name", "%q is another port of the Service already", clip(o.Name))
			continue
		}
		p := servicePort{name: intern(o.Name), protocol: protocol, port: port}
		if o.NodePort != 0 {
			n, err := parsePort(o.NodePort)
			switch {
			case err != nil:
				r.fault(field+".nodePort", "%v", err)
			case nodePorts[number{protocol, n}]:
				r.fault(field+".nodePort", "%d/%s is the NodePort of another port of the Service already", n, protocol)
			default:
				p.nodePort = n
			}
		}
		ports[number{protocol, port}], names[portName{o.Name, protocol}] = true, true
		nodePorts[number{protocol, p.nodePort}] = true
		r.s.ports = append(r.s.ports, p)
	}
}

// addresses reads the external addresses. An ingress entry of a load balancer that proxies (ipMode Proxy) or has
// only a hostname is left alone: that traffic has to leave the node.
func (r *serviceReader) addresses() {
	for i, s := range r.o.Spec.ExternalIPs {
		r.s.external = r.addAddr(r.s.external, fmt.Sprintf("spec.externalIPs[%d]", i), s)
	}
	for i := range r.o.Status.LoadBalancer.Ingress {
		in := &r.o.Status.LoadBalancer.Ingress[i]
		if in.IP == "" || in.IPMode != nil && *in.IPMode != v1.LoadBalancerIPModeVIP {
			continue
		}
		r.s.vips = r.addAddr(r.s.vips, fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), in.IP)
	}
}

func (r *serviceReader) addAddr(list []netip.Addr, field, s string) []netip.Addr {
	a, err := parseUnicast(s)
	if err != nil {
		r.fault(field, "%v", err)
		return list
	}
	if slices.Contains(list, a) {
		return list
	}
	return append(list, a)
}

// sources reads the source ranges. The API's validation lets white space through, so we do.
func (r *serviceReader) sources() {
	const field = "spec.loadBalancerSourceRanges"
	for i, s := range r.o.Spec.LoadBalancerSourceRanges {
		p, err := parsePrefix(strings.TrimSpace(s))
		if err != nil {
			r.fault(fmt.Sprintf("%s[%d]", field, i), "%v", err)
			r.s.badSource = true
			continue
		}
		r.s.sources = append(r.s.sources, p)
	}
	for _, ipv6 := range []bool{false, true} {
		isFamily := func(a netip.Addr) bool { return a.Is6() == ipv6 }
		if len(r.s.sources) > 0 && len(r.s.sourcesOf(ipv6)) == 0 && slices.ContainsFunc(r.s.vips, isFamily) &&
			!slices.ContainsFunc(r.s.sources, func(p netip.Prefix) bool { return isFamily(p.Addr()) }) {
			r.fault(field, "has no range of the family of the %s load balancer address, which is open to everybody", familyName(ipv6))
		}
	}
}

// nobody are source ranges that no client can have, by family.
var nobody = [2]netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 32), netip.PrefixFrom(netip.IPv6Unspecified(), 128)}

// sourcesOf returns the source ranges of a family; none means everybody. As in kube-proxy, a family without
// a range is open. Unlike there, a range that could not be read does not open it: then nobody may connect,
// because who meant to restrict a Service must not open it by a typing error.
func (s *service) sourcesOf(ipv6 bool) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range s.sources {
		if p.Addr().Is6() != ipv6 {
			continue
		}
		if p.Bits() == 0 {
			return nil
		}
		list = append(list, p)
	}
	if len(list) == 0 && s.badSource {
		return []netip.Prefix{nobody[family(ipv6)]}
	}
	return list
}

func (r *serviceReader) affinity() {
	switch r.o.Spec.SessionAffinity {
	case v1.ServiceAffinityNone, "":
		return
	case v1.ServiceAffinityClientIP:
	default:
		r.fault("spec.sessionAffinity", "%q is not one of None, ClientIP", clip(string(r.o.Spec.SessionAffinity)))
		return
	}
	seconds := int32(defaultAffinity)
	if c := r.o.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	if seconds < 1 || seconds > maxAffinity {
		r.fault("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d is not in 1-%d", seconds, maxAffinity)
		seconds = defaultAffinity
	}
	r.s.affinity = time.Duration(seconds) * time.Second
}
