package agent

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/test/lab"
	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

const manifest = `
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: default}
spec:
  type: NodePort
  clusterIP: %[2]s
  clusterIPs: [%[2]s]
  ipFamilies: [IPv4]
  ports: [{name: p, protocol: %[5]s, port: 80, nodePort: %[3]d}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s, namespace: default, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: p, protocol: %[5]s, port: 8080}]
endpoints: %[4]s
`

const node = `
apiVersion: v1
kind: Node
metadata: {name: node}
status: {addresses: [{type: InternalIP, address: 172.18.0.11}]}
`

// shop is a world with an agent that reads a directory of manifests, and two pods behind Services.
type shop struct {
	*lab.World
	t        *testing.T
	dir      string
	program  string
	mode     string
	a, b     *lab.Host
	vip      netip.AddrPort
	nodePort netip.AddrPort
}

func newShop(t *testing.T, mode string) *shop {
	s := &shop{World: labtest.Start(t), t: t, dir: t.TempDir(), program: labtest.Build(t), mode: mode,
		vip: netip.MustParseAddrPort("10.96.0.10:80"), nodePort: netip.MustParseAddrPort("172.18.0.11:30080")}
	var err error
	s.a, err = s.AddPod(s.Node, "a")
	require.NoError(t, err)
	s.b, err = s.AddPod(s.Node2, "b")
	require.NoError(t, err)
	for _, h := range []*lab.Host{s.a, s.b} {
		for _, network := range []string{"tcp", "udp"} {
			require.NoError(t, h.Serve(network, netip.AddrPortFrom(h.Addr4, 8080).String(), h.Name))
		}
	}
	s.write("node.yaml", node)
	s.write("web.yaml", s.service("web", "10.96.0.10", 30080, "TCP", s.a, s.b))
	s.write("dns.yaml", s.service("dns", "10.96.0.11", 30053, "UDP", s.a, s.b))
	return s
}

func (s *shop) service(name, ip string, port int, protocol string, pods ...*lab.Host) string {
	var list []string
	for _, p := range pods {
		on := "node"
		if p == s.b {
			on = "node2"
		}
		list = append(list, fmt.Sprintf("{addresses: [%q], nodeName: %s}", p.Addr4, on))
	}
	return fmt.Sprintf(manifest, name, ip, port, "["+strings.Join(list, ", ")+"]", protocol)
}

// write replaces a manifest at once, as kubectl's editors and ConfigMaps do: the agent must not see half of it.
func (s *shop) write(name, text string) {
	temp := filepath.Join(s.dir, name+".new")
	require.NoError(s.t, os.WriteFile(temp, []byte(text), 0o644))
	require.NoError(s.t, os.Rename(temp, filepath.Join(s.dir, name)))
}

// pins returns what lbproxy has in the BPF file system.
func (s *shop) pins() []string {
	found, err := filepath.Glob(filepath.Join(s.BPFFS(), "lbproxy*"))
	require.NoError(s.t, err)
	return found
}

func (s *shop) args(more ...string) []string {
	return append([]string{"--manifests", s.dir, "--proxy-mode", s.mode, "--hostname-override", "node", "--log-level", "debug",
		"--cluster-cidr", "10.244.0.0/16", "--cgroup-root", s.Cgroup(), "--bpffs", s.BPFFS()}, more...)
}

// start starts the agent and waits for its first complete sync.
func (s *shop) start() *lab.Process {
	p, err := s.Node.Start(s.program, s.args()...)
	require.NoError(s.t, err)
	s.waitFor(p, "msg=synced")
	return p
}

func (s *shop) waitFor(p *lab.Process, text string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		select {
		case <-p.Done():
			s.t.Fatalf("the agent ended: %s", p.Output())
		default:
		}
		return strings.Contains(p.Output(), text)
	}, 20*time.Second, 5*time.Millisecond, "no %q from the agent", text)
}

func (s *shop) dial(from *lab.Host, network string, to netip.AddrPort) lab.Answer {
	s.t.Helper()
	a, err := from.Dial(lab.Request{Network: network, Addr: to, Timeout: 3 * time.Second})
	require.NoError(s.t, err)
	return a
}

// load makes connections of every kind until the returned function checks that none failed.
func (s *shop) load() (check func()) {
	type running struct {
		name string
		load *lab.Load
	}
	var all []running
	for _, from := range []*lab.Host{s.a, s.Node, s.Outside} {
		targets := []netip.AddrPort{s.vip, s.nodePort}
		l, err := from.Load(lab.LoadRequest{Network: "tcp", Targets: targets, Workers: 2, Rate: 300, Held: 4, Timeout: 5 * time.Second})
		require.NoError(s.t, err)
		all = append(all, running{from.Name, l})
	}
	return func() {
		s.t.Helper()
		for _, r := range all {
			result, err := r.load.Stop()
			require.NoError(s.t, err)
			s.t.Logf("%s: %d connects, %d requests on held connections, slowest connect %s", r.name, result.Connects, result.Requests, result.Slowest)
			assert.Zero(s.t, result.Failures, "%s: %v", r.name, result.Errors)
			assert.Zero(s.t, result.Resets, "%s: %v", r.name, result.Errors)
			assert.Greater(s.t, result.Connects, 50, r.name)
			assert.Greater(s.t, result.Requests, 50, r.name)
		}
	}
}

func modes(t *testing.T, f func(t *testing.T, s *shop)) {
	for _, mode := range []string{"auto", "nftables"} {
		t.Run(mode, func(t *testing.T) { f(t, newShop(t, mode)) })
	}
}

// Connections do not notice that the agent is killed and started again, and with nothing changed meanwhile the new
// one writes nothing to the kernel.
func TestKilledAgent(t *testing.T) {
	modes(t, func(t *testing.T, s *shop) {
		p := s.start()
		check := s.load()
		for range 5 {
			time.Sleep(100 * time.Millisecond)
			require.NoError(t, p.Kill())
			time.Sleep(100 * time.Millisecond)
			require.Empty(t, s.dial(s.a, "udp", netip.MustParseAddrPort("10.96.0.11:80")).Error)
			p = s.start()
			require.Regexp(t, regexp.MustCompile(`msg=synced .*full=true writes=0 `), p.Output())
		}
		check()
	})
}

// What changed while no agent was there is applied by the next one.
func TestChangesWhileDead(t *testing.T) {
	modes(t, func(t *testing.T, s *shop) {
		require.NoError(t, s.start().Kill())
		s.write("web.yaml", s.service("web", "10.96.0.10", 30080, "TCP", s.b))
		require.NoError(t, os.Remove(filepath.Join(s.dir, "dns.yaml")))
		s.start()
		for range 10 {
			require.Equal(t, "b", s.dial(s.a, "tcp", s.vip).Backend)
			require.Equal(t, "b", s.dial(s.Outside, "tcp", s.nodePort).Backend)
		}
		require.NotEmpty(t, s.dial(s.Outside, "udp", netip.MustParseAddrPort("10.96.0.11:80")).Error)
	})
}

// An endpoint that goes away takes no connection with it that is made afterwards, and none fails meanwhile.
func TestScaleUnderLoad(t *testing.T) {
	modes(t, func(t *testing.T, s *shop) {
		p := s.start()
		check := s.load()
		for i := range 20 {
			pods := []*lab.Host{s.a, s.b}
			if i%2 == 0 {
				pods = pods[1:]
			}
			s.write("web.yaml", s.service("web", "10.96.0.10", 30080, "TCP", pods...))
			time.Sleep(50 * time.Millisecond)
		}
		check()
		require.NotContains(t, p.Output(), "level=ERROR")
	})
}

// A stranger's `nft flush ruleset` is repaired by the living agent, without waiting for a change of a Service.
func TestFlushedRuleset(t *testing.T) {
	s := newShop(t, "auto")
	p := s.start()
	require.NotEmpty(t, s.dial(s.Outside, "tcp", s.nodePort).Backend)
	s.nft("flush", "ruleset")
	s.waitFor(p, "somebody removed the nftables table")
	require.Eventually(t, func() bool { return s.dial(s.Outside, "tcp", s.nodePort).Backend != "" }, 10*time.Second, 10*time.Millisecond)
}

// SIGTERM ends the agent well and leaves what it programmed; cleanup removes all of it.
func TestStopAndCleanup(t *testing.T) {
	modes(t, func(t *testing.T, s *shop) {
		p := s.start()
		require.NoError(t, p.Signal(syscall.SIGTERM))
		require.NoError(t, p.Wait())
		require.NotEmpty(t, s.dial(s.a, "tcp", s.vip).Backend)
		require.NotEmpty(t, s.dial(s.Outside, "tcp", s.nodePort).Backend)

		require.Contains(t, s.run("dump"), "10.96.0.10:80/TCP -> 10.244.1.2:8080 10.244.2.2:8080")
		s.run("cleanup")
		require.NotEmpty(t, s.dial(s.a, "tcp", s.vip).Error)
		require.Empty(t, s.pins())
		require.Empty(t, s.nft("list", "ruleset"))
		s.run("cleanup") // again is no error
	})
}

// run runs a subcommand on the node, which must succeed, and returns what it printed.
func (s *shop) run(command string) string {
	s.t.Helper()
	p, err := s.Node.Start(s.program, command, "--bpffs", s.BPFFS(), "--cgroup-root", s.Cgroup())
	require.NoError(s.t, err)
	require.NoError(s.t, p.Wait(), p.Output())
	return p.Output()
}

func (s *shop) nft(args ...string) string {
	s.t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		nft = "/usr/sbin/nft"
	}
	p, err := s.Node.Start(nft, args...)
	require.NoError(s.t, err)
	require.NoError(s.t, p.Wait(), p.Output())
	return p.Output()
}

// A new manifest changes elements of sets and maps, and nothing else; nft can print all of it.
func TestServiceIsElements(t *testing.T) {
	s := newShop(t, "nftables")
	p := s.start()
	before := s.nft("-t", "list", "ruleset")
	s.write("more.yaml", s.service("more", "10.96.0.12", 30081, "TCP", s.a, s.b, s.a))
	s.waitFor(p, "services=1 removed=0 full=false")
	require.Equal(t, before, s.nft("-t", "list", "ruleset"))
	require.Contains(t, s.nft("list", "ruleset"), "10.96.0.12 . tcp . 80")
	s.nft("-j", "list", "ruleset")
}

// Objects that are wrong in every way do not keep one good Service from being served.
func TestObjectsFromHell(t *testing.T) {
	s := newShop(t, "auto")
	s.write("0-garbage.yaml", strings.Repeat("\x00\xff{[garbage", 1<<20))
	s.write("1-kinds.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\n- 1\n---\nkind: Service\n")
	s.write("2-bad.yaml", s.service("bad", "300.96.0.1", 30090, "TCP", s.a)+"---\n"+s.service("worse", "10.96.0.13", 0, "CARP", s.a)+
		"---\n"+strings.Replace(s.service("loop", "10.96.0.14", 0, "TCP", s.a), "10.244.1.2", "127.0.0.1", 1)+
		"---\n"+strings.Replace(s.service("fqdn", "10.96.0.15", 0, "TCP", s.a), "addressType: IPv4", "addressType: FQDN", 1)+
		"---\n"+strings.Replace(s.service("zero", "10.96.0.16", 0, "TCP", s.a), "port: 80,", "port: 0,", 1)+
		"---\n"+strings.ReplaceAll(s.service("x", "10.96.0.17", 0, "TCP", s.a), "name: x,", ""))
	s.write("3-twice.yaml", s.service("web", "10.96.0.10", 30080, "TCP", s.b))
	p := s.start()
	for range 5 {
		require.NotEmpty(t, s.dial(s.a, "tcp", s.vip).Backend)
		require.NotEmpty(t, s.dial(s.Outside, "tcp", s.nodePort).Backend)
	}
	for _, named := range []string{"0-garbage.yaml", "1-kinds.yaml", "default/bad", "default/worse", "default/loop", "default/fqdn", "default/zero", "3-twice.yaml"} {
		require.Contains(t, p.Output(), named)
	}
	require.Less(t, len(p.Output()), 20_000, "one line for each problem")
}

// What keeps the agent from starting is said in one line that also says what to do, with nothing half-installed.
func TestStartErrors(t *testing.T) {
	s := newShop(t, "auto")
	nowhere := filepath.Join(s.dir, "nowhere")
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"unknown flag":        {[]string{"--proxy-speed", "11"}, "unknown flag: --proxy-speed"},
		"unknown mode":        {s.args("--proxy-mode", "quic"), `--proxy-mode "quic" is not auto, ebpf or nftables`},
		"argument":            {s.args("please"), `unknown command "please"`},
		"no such directory":   {s.args("--manifests", nowhere), "is not a directory that can be read"},
		"two sources":         {s.args("--master", "https://192.0.2.1"), "exclude each other"},
		"no source":           {[]string{"--hostname-override", "node"}, "use --manifests DIR"},
		"bad CIDR":            {s.args("--cluster-cidr", "10.244.0.0"), `"10.244.0.0" is not a CIDR`},
		"bad instance":        {s.args("--instance", "../x"), "lower-case letters"},
		"bad mark":            {s.args("--iptables-masquerade-bit", "32"), "not between 0 and 31"},
		"bad log level":       {s.args("--log-level", "loud"), `--log-level "loud"`},
		"bad NodePort CIDR":   {s.args("--nodeport-addresses", "everywhere"), "nodePortAddresses[0]"},
		"no cgroup":           {s.args("--proxy-mode", "ebpf", "--cgroup-root", nowhere), "cgroup"},
		"no BPF file system":  {s.args("--proxy-mode", "ebpf", "--bpffs", nowhere), nowhere},
		"dump to nowhere":     {[]string{"dump", "-o", "xml"}, `-o "xml" is not text or json`},
		"cleanup of what":     {[]string{"cleanup", "everything"}, `unknown command "everything"`},
		"unreadable kubeconf": {[]string{"--kubeconfig", nowhere}, nowhere},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := s.Node.Start(s.program, tc.args...)
			require.NoError(t, err)
			require.Error(t, p.Wait(), "must not succeed: %s", p.Output())
			last := lastLine(p.Output())
			require.Contains(t, last, "lbproxy: ")
			require.Contains(t, last, tc.says)
		})
	}
	require.Empty(t, s.nft("list", "ruleset"))
	require.Empty(t, s.pins())
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func TestSecondAgent(t *testing.T) {
	s := newShop(t, "nftables")
	s.start()
	p, err := s.Node.Start(s.program, s.args()...)
	require.NoError(t, err)
	require.Error(t, p.Wait())
	require.Contains(t, lastLine(p.Output()), "already running here: stop it, or choose another --instance")

	other, err := s.Node.Start(s.program, s.args("--instance", "other")...)
	require.NoError(t, err)
	s.waitFor(other, "msg=synced")
	require.Contains(t, s.nft("list", "tables"), "table ip lbproxy-other")
}

// Without the hook auto goes on with nftables and says why.
func TestAutoFallsBack(t *testing.T) {
	s := newShop(t, "auto")
	p, err := s.Node.Start(s.program, s.args("--cgroup-root", s.dir)...)
	require.NoError(t, err)
	s.waitFor(p, "msg=synced")
	require.Regexp(t, `msg=datapaths nftables=on ebpf="off: .*cgroup`, p.Output())
	require.NotEmpty(t, s.dial(s.a, "tcp", s.vip).Backend)
}

func TestNotRoot(t *testing.T) {
	program := labtest.Build(t)
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	dir := filepath.Dir(program)
	require.NoError(t, os.Chmod(dir, 0o755))
	for _, args := range [][]string{{"--manifests", "/"}, {"cleanup"}, {"dump"}, {"demo"}} {
		cmd := exec.Command(program, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		require.Error(t, err, "%v", args)
		require.Contains(t, lastLine(string(out)), "root", "%v", args)
	}
}
