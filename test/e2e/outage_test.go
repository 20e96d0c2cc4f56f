package e2e

import (
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/test/kubetest"
)

var unchanged = regexp.MustCompile(`msg=synced .*full=true writes=0 `)

// An agent that starts among Services that are programmed already finds nothing to do: none is removed and added
// again, and no connection notices.
func testRestart(t *testing.T, c *cluster) {
	s := c.create(t, "restart", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort})
	c.scale(t, s, podPort, c.a, c.c)
	pod, outside := clusterIPs(c.pod, s), c.nodePorts(c.Outside, s)
	reach(t, time.Now(), "created", slices.Concat(pod, outside), "a", "c")
	stopPod, stopOutside := keepDialing(t, pod...), keepDialing(t, outside...)
	for range 3 {
		c.agent.kill(t)
		c.agent.startSynced(t)
		require.Regexp(t, unchanged, c.agent.process.Output())
	}
	stopPod()
	stopOutside()
	c.remove(t, s)
}

// The API server is away for a while. Connections go on, and what changes afterwards is applied.
func testAPIServerAway(t *testing.T, c *cluster) {
	s := c.create(t, "away", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort})
	c.scale(t, s, podPort, c.a, c.b)
	pod, outside := clusterIPs(c.pod, s), c.nodePorts(c.Outside, s)
	flows := slices.Concat(pod, outside)
	reach(t, time.Now(), "created", flows, "a", "b")

	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		stopPod, stopOutside := keepDialing(t, pod...), keepDialing(t, outside...)
		begin := time.Now()
		require.NoError(t, c.api.Stop(signal))
		t.Logf("api server ended %s after %s", since(begin), signal)
		time.Sleep(2 * time.Second)
		begin = time.Now()
		require.NoError(t, c.api.Run(t.Context()))
		t.Logf("api server ready after %s", since(begin))
		begin = time.Now()
		c.scale(t, s, podPort, c.c)
		added := c.create(t, "added", corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP})
		c.scale(t, added, podPort, c.c)
		reach(t, begin, "endpoints changed when the api server was back", flows, "c")
		reach(t, begin, "created when the api server was back", clusterIPs(c.pod, added), "c")
		c.remove(t, added)
		c.scale(t, s, podPort, c.a, c.b)
		reach(t, time.Now(), "endpoints changed again", flows, "a", "b")
		stopPod()
		stopOutside()
	}
	c.remove(t, s)
}

// An agent that starts without an API server keeps what the one before it has programmed.
func testRestartWhileAway(t *testing.T, c *cluster) {
	s := c.create(t, "away-restart", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort})
	c.scale(t, s, podPort, c.a, c.b)
	pod, outside := clusterIPs(c.pod, s), c.nodePorts(c.Outside, s)
	flows := slices.Concat(pod, outside)
	reach(t, time.Now(), "created", flows, "a", "b")

	stopPod, stopOutside := keepDialing(t, pod...), keepDialing(t, outside...)
	require.NoError(t, c.api.Stop(syscall.SIGKILL))
	c.agent.kill(t)
	c.agent.start(t, kubetest.KubeProxy)
	c.agent.waitFor(t, "cannot read from the kubernetes API")
	time.Sleep(time.Second)
	require.NotContains(t, c.agent.process.Output(), synced)
	reach(t, time.Now(), "agent started without api server", flows, "a", "b")

	require.NoError(t, c.api.Run(t.Context()))
	begin := time.Now()
	c.agent.waitFor(t, synced)
	t.Logf("agent synced %s after the api server was ready", since(begin))
	require.Regexp(t, unchanged, c.agent.process.Output())
	begin = time.Now()
	c.scale(t, s, podPort, c.c)
	reach(t, begin, "endpoints changed", flows, "c")
	stopPod()
	stopOutside()
	c.remove(t, s)
}

// As long as one of the two lists is missing, nothing is programmed: what is there stays as it is, and what is new waits.
func testHalfList(t *testing.T, c *cluster, missing, present string) {
	s := c.create(t, "before-"+missing, corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort})
	c.scale(t, s, podPort, c.a, c.c)
	pod, outside := clusterIPs(c.pod, s), c.nodePorts(c.Outside, s)
	reach(t, time.Now(), "created", slices.Concat(pod, outside), "a", "c")
	role := c.allow(t, "without-"+missing, "nodes", "servicecidrs", present)

	stopPod, stopOutside := keepDialing(t, pod...), keepDialing(t, outside...)
	c.agent.kill(t)
	c.agent.start(t, kubetest.Nobody)
	c.agent.waitFor(t, "resource="+missing)
	require.NotContains(t, c.agent.process.Output(), "resource="+present)
	added := c.create(t, "added-without-"+missing, corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP})
	c.scale(t, added, podPort, c.b)
	time.Sleep(time.Second)
	require.NotContains(t, c.agent.process.Output(), synced)
	waitFor(t, clusterIPs(c.pod, added), noAnswer)

	role.Rules[0].Resources = append(role.Rules[0].Resources, missing)
	_, err := c.client.RbacV1().ClusterRoles().Update(t.Context(), role, metav1.UpdateOptions{})
	require.NoError(t, err)
	reach(t, time.Now(), missing+" may be listed", clusterIPs(c.pod, added), "b")
	stopPod()
	stopOutside()
	c.remove(t, s)
	c.remove(t, added)
	require.NoError(t, c.client.RbacV1().ClusterRoleBindings().Delete(t.Context(), role.Name, metav1.DeleteOptions{}))
	c.agent.kill(t)
	c.agent.startSynced(t)
}

// allow binds a new role to Nobody that may list and watch these resources.
func (c *cluster) allow(t *testing.T, name string, resources ...string) *rbacv1.ClusterRole {
	t.Helper()
	meta := metav1.ObjectMeta{Name: name}
	rbac := c.client.RbacV1()
	role, err := rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{"*"}, Resources: resources, Verbs: []string{"get", "list", "watch"},
	}}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: kubetest.Nobody}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	return role
}

// The agent ends when it is asked to, and leaves what it has programmed.
func testStop(t *testing.T, c *cluster) {
	s := c.create(t, "stop", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort})
	c.scale(t, s, podPort, c.a, c.c)
	pod, outside := clusterIPs(c.pod, s), c.nodePorts(c.Outside, s)
	reach(t, time.Now(), "created", slices.Concat(pod, outside), "a", "c")
	stopPod, stopOutside := keepDialing(t, pod...), keepDialing(t, outside...)
	c.agent.stop(t)
	time.Sleep(500 * time.Millisecond)
	stopPod()
	stopOutside()
}
