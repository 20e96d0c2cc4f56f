package ebpf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// agentMain is an agent that changes its mind all the time, until it is killed.
func agentMain() {
	o := Options{CgroupRoot: os.Getenv("AGENT_CGROUP"), PinDir: os.Getenv("AGENT_PINS")}
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
	}
	d, err := open(o, sizes{frontends4: 16, frontends6: 4, sets: 16, backends: 64})
	fail(err)
	one := svc("web", port("10.0.0.1:80/TCP", "127.0.0.2:8080", "127.0.0.3:8080"))
	two := svc("web", port("10.0.0.1:80/TCP", "127.0.0.4:8080"), port("10.0.0.1:81/TCP", "127.0.0.4:8080"))
	for i := 0; ; i++ {
		fail(d.Apply(context.Background(), full(append(services(rand.IntN(2000), 3), one)...)))
		for range 20 {
			fail(d.Apply(context.Background(), changed(two)))
			fail(d.Apply(context.Background(), changed(one)))
		}
	}
}

// TestKill: an agent killed in the middle of whatever it does breaks no connection, and the next one converges.
func TestKill(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.serve("127.0.0.2:8080", "127.0.0.3:8080", "127.0.0.4:8080")
	o := w.options("lbproxy")
	run := func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), workerEnv+"=agent", "AGENT_CGROUP="+o.CgroupRoot, "AGENT_PINS="+o.PinDir)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		require.NoError(t, cmd.Start())
		return cmd
	}
	kill := func(cmd *exec.Cmd) {
		require.NoError(t, cmd.Process.Kill())
		require.ErrorContains(t, cmd.Wait(), "killed", "it had not ended by itself")
	}
	cmd := run()
	require.Eventually(t, func() bool { return w.do(request{Do: "tcp", Addr: "10.0.0.1:80"}).From != "" }, 5*time.Second, 10*time.Millisecond)
	require.Empty(t, w.do(request{Do: "storm", Addr: "10.0.0.1:80"}).Call)
	for range 25 {
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		kill(cmd)
		cmd = run()
	}
	kill(cmd)
	d := w.open(o)
	apply(t, d, full(svc("web", port("10.0.0.1:80/TCP", "127.0.0.2:8080"))))
	require.Equal(t, "10.0.0.1:80/TCP -> 127.0.0.2:8080\n", dump(t, o))
	a := w.do(request{Do: "stop"})
	require.Empty(t, a.Failed)
	require.Greater(t, a.Done, 1000)
	s, err := ReadStatus(o)
	require.NoError(t, err)
	require.Zero(t, s.Totals.Broken)
	t.Logf("%d connects over 26 kills, no failure", a.Done)
}
