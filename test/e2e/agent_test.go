package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/test/kubetest"
	"github.com/lbproxy/lbproxy/test/lab"
	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

// agent is the real program on the cluster's node.
type agent struct {
	cluster *cluster
	program string
	process *lab.Process
}

// newAgent does not start it yet.
func newAgent(t *testing.T, c *cluster) *agent {
	a := &agent{cluster: c, program: labtest.Build(t)}
	t.Cleanup(func() {
		if t.Failed() && a.process != nil {
			t.Logf("end of the agent's output:\n%s", a.process.Output())
		}
	})
	return a
}

// start runs the agent as a user of the API server and returns without waiting for anything.
func (a *agent) start(t *testing.T, user string) {
	t.Helper()
	kubeconfig, err := a.cluster.api.Kubeconfig(user)
	require.NoError(t, err)
	a.process, err = a.cluster.Node.Start(a.program,
		"--kubeconfig", kubeconfig, "--hostname-override", nodeName, "--proxy-mode", a.cluster.mode,
		"--cluster-cidr", lab.Cluster4.String()+","+lab.Cluster6.String(),
		"--cgroup-root", a.cluster.Cgroup(), "--bpffs", a.cluster.BPFFS(), "--log-level", "debug")
	require.NoError(t, err)
}

// startSynced runs the agent with the rights of kube-proxy and waits until it has programmed the whole world.
func (a *agent) startSynced(t *testing.T) {
	t.Helper()
	begin := time.Now()
	a.start(t, kubetest.KubeProxy)
	a.waitFor(t, synced)
	t.Logf("agent synced %s after its start", since(begin))
}

// synced begins the line that the agent logs when it has programmed something.
const synced = "msg=synced "

// waitFor returns when the agent has logged this text.
func (a *agent) waitFor(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool {
		a.requireRunning(t)
		return strings.Contains(a.process.Output(), text)
	}, patience, pollInterval, "no %q from the agent", text)
}

func (a *agent) requireRunning(t *testing.T) {
	t.Helper()
	select {
	case <-a.process.Done():
		t.Fatalf("the agent ended: %v", a.process.Wait())
	default:
	}
}

// kill ends the agent the hard way.
func (a *agent) kill(t *testing.T) {
	t.Helper()
	a.requireRunning(t)
	require.NoError(t, a.process.Kill())
}

// stop asks the agent to end, which it has to do well.
func (a *agent) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, a.process.Signal(syscall.SIGTERM))
	select {
	case <-a.process.Done():
		require.NoError(t, a.process.Wait())
	case <-time.After(patience):
		t.Fatal("the agent does not end")
	}
}
