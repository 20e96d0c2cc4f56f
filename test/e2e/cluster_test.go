package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lbproxy/lbproxy/test/kubetest"
	"github.com/lbproxy/lbproxy/test/lab"
	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

const (
	namespace = "e2e"
	nodeName  = "node-1" // where the agent runs
	node2Name = "node-2"
)

// Every pod serves on two ports, and says in its answer which one it was.
const (
	podPort    = 8080
	podPortNew = 9090
)

var families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// cluster is a world with an API server on its node, and three pods to serve: a and b on the node, c on the other one.
type cluster struct {
	*lab.World
	mode   string
	api    *kubetest.Server
	client kubernetes.Interface
	agent  *agent

	a, b, c *lab.Host
	pod     *lab.Host // a client, on the node
}

func startCluster(t *testing.T, mode string) *cluster {
	bin := kubetest.Programs(t)
	c := &cluster{World: labtest.Start(t), mode: mode}
	c.agent = newAgent(t, c)
	begin := time.Now()
	var err error
	c.api, err = kubetest.Start(t.Context(), kubetest.Config{Bin: bin, Dir: t.TempDir(), Host: c.Node})
	require.NoError(t, err)
	t.Logf("etcd and kube-apiserver ready after %s", since(begin))
	c.client, err = c.api.Client()
	require.NoError(t, err)
	c.register(t)
	for name, h := range map[string]**lab.Host{"a": &c.a, "b": &c.b, "c": &c.c, "client": &c.pod} {
		node := c.Node
		if name == "c" {
			node = c.Node2
		}
		*h, err = c.AddPod(node, name)
		require.NoError(t, err)
	}
	for _, h := range []*lab.Host{c.a, c.b, c.c} {
		serve(t, h)
	}
	return c
}

// shortenUDP makes conntrack forget a UDP flow soon. The tests dial so often that they reuse ports, and a flow that
// conntrack remembers goes to where it went before.
func shortenUDP() error {
	for _, name := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
		if err := os.WriteFile("/proc/sys/net/netfilter/"+name, []byte("1"), 0); err != nil {
			return fmt.Errorf("shorten UDP timeout: %w", err)
		}
	}
	return nil
}

func serve(t *testing.T, pod *lab.Host) {
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range []netip.Addr{pod.Addr4, pod.Addr6} {
			require.NoError(t, pod.Serve(network, netip.AddrPortFrom(addr, podPort).String(), pod.Name))
			require.NoError(t, pod.Serve(network, netip.AddrPortFrom(addr, podPortNew).String(), pod.Name+"-new"))
		}
	}
}

// register creates what other parts of a cluster would have created.
func (c *cluster) register(t *testing.T) {
	core := c.client.CoreV1()
	_, err := core.Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	require.NoError(t, err)
	for name, h := range map[string]*lab.Host{nodeName: c.Node, node2Name: c.Node2} {
		node, err := core.Nodes().Create(t.Context(), kubetest.Node(name, h.Addr4, h.Addr6), metav1.CreateOptions{})
		require.NoError(t, err)
		require.Len(t, node.Status.Addresses, 2)
	}
}

// create creates a dual-stack Service with port 80 for TCP and for UDP.
func (c *cluster) create(t *testing.T, name string, spec corev1.ServiceSpec) *corev1.Service {
	t.Helper()
	dualStack := corev1.IPFamilyPolicyRequireDualStack
	spec.IPFamilyPolicy = &dualStack
	spec.Ports = []corev1.ServicePort{
		{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80},
		{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80},
	}
	s, err := c.client.CoreV1().Services(namespace).Create(t.Context(),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Len(t, s.Spec.ClusterIPs, 2)
	return s
}

// update changes a Service and returns what became of it.
func (c *cluster) update(t *testing.T, s *corev1.Service, change func(*corev1.Service)) *corev1.Service {
	t.Helper()
	s = s.DeepCopy()
	change(s)
	s, err := c.client.CoreV1().Services(namespace).Update(t.Context(), s, metav1.UpdateOptions{})
	require.NoError(t, err)
	return s
}

func (c *cluster) remove(t *testing.T, s *corev1.Service) {
	t.Helper()
	require.NoError(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), s.Name, metav1.DeleteOptions{}))
}

// scale makes these pods, at one of their ports, the Service's endpoints.
func (c *cluster) scale(t *testing.T, s *corev1.Service, port int32, pods ...*lab.Host) {
	t.Helper()
	ports := map[string]int32{}
	for _, p := range s.Spec.Ports {
		ports[p.Name] = port
	}
	api := c.client.DiscoveryV1().EndpointSlices(namespace)
	for _, family := range families {
		var endpoints []kubetest.Endpoint
		for _, pod := range pods {
			node := nodeName
			if pod == c.c {
				node = node2Name
			}
			endpoints = append(endpoints, kubetest.Endpoint{Addr: pod.Addr(family == corev1.IPv6Protocol), Node: node})
		}
		slice := kubetest.EndpointSlice(s, family, ports, endpoints)
		_, err := api.Create(t.Context(), slice, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = api.Update(t.Context(), slice, metav1.UpdateOptions{})
		}
		require.NoError(t, err)
	}
}

// clusterIPs are the flows from a host to the Service's ClusterIPs.
func clusterIPs(from *lab.Host, s *corev1.Service) []flow {
	var all []flow
	for _, ip := range s.Spec.ClusterIPs {
		all = append(all, flowsTo(from, netip.MustParseAddr(ip), s, servicePort)...)
	}
	return all
}

func servicePort(p corev1.ServicePort) int32 { return p.Port }
func nodePort(p corev1.ServicePort) int32    { return p.NodePort }

// flowsTo are the flows from a host to all ports a Service has at an address.
func flowsTo(from *lab.Host, to netip.Addr, s *corev1.Service, number func(corev1.ServicePort) int32) []flow {
	var all []flow
	for _, p := range s.Spec.Ports {
		network := "tcp"
		if p.Protocol == corev1.ProtocolUDP {
			network = "udp"
		}
		all = append(all, flow{from, network, netip.AddrPortFrom(to, uint16(number(p)))})
	}
	return all
}

// nodePorts are the flows from a host to the Service's NodePorts on the node.
func (c *cluster) nodePorts(from *lab.Host, s *corev1.Service) []flow {
	return slices.Concat(flowsTo(from, c.Node.Addr4, s, nodePort), flowsTo(from, c.Node.Addr6, s, nodePort))
}
