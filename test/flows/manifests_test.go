package flows_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

const (
	servicePort = 80
	targetPort  = 8080
	firstNode   = "node"
	secondNode  = "node2"
)

// condition is the state of an endpoint.
type condition string

const (
	ready       condition = ""
	unready     condition = "unready"
	terminating condition = "serving, but terminating"
)

// member is an endpoint of a Service: one of the hosts, in some condition.
type member struct {
	host      string
	condition condition
}

// service is a Service of the table. All of them have every kind of frontend.
type service struct {
	name          string
	internalLocal bool
	externalLocal bool
	vipElsewhere  bool // the load balancer forwards for itself: ipMode Proxy
	members       []member
}

var services = []service{
	{name: "cluster", members: members(fromAll...)},
	{name: "self", members: members("self")},
	{name: "internal-local", internalLocal: true, members: members(fromAll...)},
	{name: "internal-local-none", internalLocal: true, members: members(fromOther...)},
	{name: "external-local", externalLocal: true, members: members(fromAll...)},
	{name: "external-local-none", externalLocal: true, members: members(fromOther...)},
	{name: "vip-elsewhere", vipElsewhere: true, members: members(fromAll...)},
	{name: "terminating", members: []member{{"a", terminating}, {"b", terminating}, {"c", unready}}},
	{name: "terminating-local", externalLocal: true, members: []member{{"a", terminating}, {"b", ready}, {"c", ready}}},
	{name: "empty"},
	{name: "unready", members: []member{{"a", unready}, {"b", unready}}},
	{name: "host-network", members: members(secondNode)},
	{name: "own-host-network", members: members(firstNode)},
}

func members(hosts ...string) []member {
	list := make([]member, 0, len(hosts))
	for _, h := range hosts {
		list = append(list, member{host: h})
	}
	return list
}

// number tells the Services' addresses and ports apart.
func number(name string) int {
	for i, s := range services {
		if s.name == name {
			return i + 10
		}
	}
	panic("no Service " + name)
}

func nodePortOf(name string) uint16 { return uint16(30000 + number(name)) }

// addressOf returns the address of a Service in one of the virtual ranges.
func addressOf(name string, prefix netip.Prefix) netip.Addr {
	b := prefix.Addr().AsSlice()
	b[len(b)-1] = byte(number(name))
	a, _ := netip.AddrFromSlice(b)
	return a
}

// writeManifests writes the Node and all Services, one file each.
func (w *world) writeManifests(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	writeObjects(t, filepath.Join(dir, "node.yaml"), &v1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: firstNode},
		Status: v1.NodeStatus{Addresses: []v1.NodeAddress{
			{Type: v1.NodeInternalIP, Address: w.Node.Addr4.String()},
			{Type: v1.NodeInternalIP, Address: w.Node.Addr6.String()},
		}},
	})
	for _, s := range services {
		objects := []any{s.object()}
		for _, ipv6 := range []bool{false, true} {
			if len(s.members) > 0 {
				objects = append(objects, w.slice(s, ipv6))
			}
		}
		writeObjects(t, filepath.Join(dir, s.name+".yaml"), objects...)
	}
	return dir
}

func writeObjects(t *testing.T, path string, objects ...any) {
	t.Helper()
	var b bytes.Buffer
	for _, o := range objects {
		text, err := yaml.Marshal(o)
		require.NoError(t, err)
		fmt.Fprintf(&b, "---\n%s", text)
	}
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
}

func (s service) object() *v1.Service {
	internal, external, ipMode := v1.ServiceInternalTrafficPolicyCluster, v1.ServiceExternalTrafficPolicyCluster, v1.LoadBalancerIPModeVIP
	if s.internalLocal {
		internal = v1.ServiceInternalTrafficPolicyLocal
	}
	if s.externalLocal {
		external = v1.ServiceExternalTrafficPolicyLocal
	}
	if s.vipElsewhere {
		ipMode = v1.LoadBalancerIPModeProxy
	}
	dualStack := v1.IPFamilyPolicyRequireDualStack
	o := &v1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "flows", Name: s.name},
		Spec: v1.ServiceSpec{
			Type:                  v1.ServiceTypeLoadBalancer,
			IPFamilyPolicy:        &dualStack,
			IPFamilies:            []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol},
			InternalTrafficPolicy: &internal,
			ExternalTrafficPolicy: external,
		},
	}
	for _, p := range []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP} {
		o.Spec.Ports = append(o.Spec.Ports, v1.ServicePort{
			Name: portName(p), Protocol: p, Port: servicePort, TargetPort: intstr.FromInt32(targetPort), NodePort: int32(nodePortOf(s.name)),
		})
	}
	for _, ipv6 := range []bool{false, true} {
		o.Spec.ClusterIPs = append(o.Spec.ClusterIPs, addressOf(s.name, clusterIP.prefix(ipv6)).String())
		o.Spec.ExternalIPs = append(o.Spec.ExternalIPs, addressOf(s.name, externalIP.prefix(ipv6)).String())
		o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress,
			v1.LoadBalancerIngress{IP: addressOf(s.name, vip.prefix(ipv6)).String(), IPMode: &ipMode})
	}
	o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
	return o
}

func portName(p v1.Protocol) string { return "by-" + string(bytes.ToLower([]byte(p))) }

func (w *world) slice(s service, ipv6 bool) *discovery.EndpointSlice {
	family, suffix := discovery.AddressTypeIPv4, "-4"
	if ipv6 {
		family, suffix = discovery.AddressTypeIPv6, "-6"
	}
	es := &discovery.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "flows", Name: s.name + suffix, Labels: map[string]string{discovery.LabelServiceName: s.name},
		},
		AddressType: family,
	}
	for _, p := range []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP} {
		name, port := portName(p), int32(targetPort)
		es.Ports = append(es.Ports, discovery.EndpointPort{Name: &name, Protocol: &p, Port: &port})
	}
	for _, m := range s.members {
		isReady, serving, ending := m.condition == ready, m.condition != unready, m.condition == terminating
		on := w.nodeOf(m.host)
		es.Endpoints = append(es.Endpoints, discovery.Endpoint{
			Addresses:  []string{w.hosts[m.host].Addr(ipv6).String()},
			Conditions: discovery.EndpointConditions{Ready: &isReady, Serving: &serving, Terminating: &ending},
			NodeName:   &on,
		})
	}
	return es
}
