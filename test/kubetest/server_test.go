package kubetest_test

import (
	"net/netip"
	"syscall"
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

func TestMain(m *testing.M) { labtest.Main(m) }

func TestServer(t *testing.T) {
	bin := kubetest.Programs(t)
	world := labtest.Start(t)
	begin := time.Now()
	server, err := kubetest.Start(t.Context(), kubetest.Config{Bin: bin, Dir: t.TempDir(), Host: world.Node})
	require.NoError(t, err)
	t.Logf("ready after %s", time.Since(begin))
	client := func(user string) kubernetes.Interface {
		c, err := kubernetes.NewForConfig(server.RESTConfig(user, world.Outside))
		require.NoError(t, err)
		return c
	}
	admin := client(kubetest.Admin)

	version, err := admin.Discovery().ServerVersion()
	require.NoError(t, err)
	require.Regexp(t, `^v1\.[1-9]`, version.GitVersion)

	dualStack := corev1.IPFamilyPolicyRequireDualStack
	service, err := admin.CoreV1().Services(metav1.NamespaceDefault).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &dualStack, Ports: []corev1.ServicePort{{Port: 80}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Len(t, service.Spec.ClusterIPs, 2)
	require.True(t, lab.Services4.Contains(netip.MustParseAddr(service.Spec.ClusterIPs[0])))
	require.True(t, lab.Services6.Contains(netip.MustParseAddr(service.Spec.ClusterIPs[1])))
	require.NotZero(t, service.Spec.Ports[0].NodePort)

	_, err = client(kubetest.Nobody).CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), err)
	proxy := client(kubetest.KubeProxy).CoreV1().Services(metav1.NamespaceDefault)
	require.True(t, apierrors.IsForbidden(proxy.Delete(t.Context(), "web", metav1.DeleteOptions{})))

	require.NoError(t, server.Stop(syscall.SIGTERM))
	_, err = proxy.List(t.Context(), metav1.ListOptions{})
	require.Error(t, err)
	require.NoError(t, server.Run(t.Context()))
	again, err := proxy.List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=web"})
	require.NoError(t, err)
	require.Len(t, again.Items, 1)
	require.Equal(t, service.Spec, again.Items[0].Spec)
}
