package endpoints

import (
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

var update = flag.Bool("update", false, "write the results of the scripts in testdata into them")

// TestScripts plays the files of testdata, one behaviour each. The parts of a file are steps, in order:
//
//	config      fields of scriptConfig, as YAML
//	addrs       the addresses of the node's interfaces
//	delete*     a manifest whose objects are deleted
//	retry       the last update is said to have failed
//	*.yaml      a manifest whose objects are set
//	want*       what Take returns now, and all problems
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), 25)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			require.NoError(t, err)
			require.NotEmpty(t, strings.TrimSpace(string(a.Comment)), "the file says which behaviour it shows")
			playScript(t, a)
			if *update {
				require.NoError(t, os.WriteFile(file, txtar.Format(a), 0o644))
			}
		})
	}
}

// scriptConfig is Config as written in scripts.
type scriptConfig struct {
	NodeName            string          `json:"nodeName"`
	DetectLocal         DetectLocalMode `json:"detectLocal"`
	ClusterCIDRs        []string        `json:"clusterCIDRs"`
	BridgeInterface     string          `json:"bridgeInterface"`
	InterfaceNamePrefix string          `json:"interfaceNamePrefix"`
	MasqueradeAll       bool            `json:"masqueradeAll"`
	NodePortAddresses   []string        `json:"nodePortAddresses"`
	LocalhostNodePorts  bool            `json:"localhostNodePorts"`
	ExternalIPs         bool            `json:"externalIPs"`
}

func readScriptConfig(t testing.TB, text []byte) Config {
	c := scriptConfig{NodeName: "node", ClusterCIDRs: []string{"10.244.0.0/16", "fd00:10:244::/48"}, ExternalIPs: true}
	require.NoError(t, yaml.UnmarshalStrict(text, &c))
	out := Config{NodeName: c.NodeName, DetectLocal: c.DetectLocal, BridgeInterface: c.BridgeInterface,
		InterfaceNamePrefix: c.InterfaceNamePrefix, MasqueradeAll: c.MasqueradeAll, NodePortAddresses: c.NodePortAddresses,
		LocalhostNodePorts: c.LocalhostNodePorts, ExternalIPs: c.ExternalIPs}
	for _, s := range c.ClusterCIDRs {
		out.ClusterCIDRs = append(out.ClusterCIDRs, netip.MustParsePrefix(s))
	}
	return out
}

func playScript(t *testing.T, a *txtar.Archive) {
	var s *Store
	var last datapath.Update
	wants := 0
	for i := range a.Files {
		f := &a.Files[i]
		if f.Name == "config" {
			s = NewStore(readScriptConfig(t, f.Data), quiet())
			continue
		}
		if s == nil {
			s = NewStore(readScriptConfig(t, nil), quiet())
		}
		switch {
		case f.Name == "addrs":
			var addrs []netip.Addr
			for _, w := range strings.Fields(string(f.Data)) {
				addrs = append(addrs, netip.MustParseAddr(w))
			}
			s.SetNodeAddrs(addrs)
		case f.Name == "retry":
			s.Retry(last)
		case strings.HasSuffix(f.Name, ".yaml"):
			play(t, s, f.Data, strings.HasPrefix(f.Name, "delete"))
		case strings.HasPrefix(f.Name, "want"):
			wants++
			s.Synced()
			last = s.Take()
			got := formatUpdate(last, s.Problems())
			if *update {
				f.Data = []byte(got)
			}
			require.Equal(t, string(f.Data), got, "%s", f.Name)
		default:
			t.Fatalf("no step is called %s", f.Name)
		}
	}
	require.Positive(t, wants)
}

func play(t testing.TB, s *Store, manifest []byte, remove bool) {
	d := decodeManifest("script.yaml", manifest)
	require.Empty(t, d.faults)
	for _, o := range d.objects {
		switch {
		case remove && o.service != nil:
			s.DeleteService(o.key.name)
		case remove && o.slice != nil:
			s.DeleteSlice(o.key.name.Namespace, o.key.name.Name)
		case remove:
			s.DeleteNode()
		case o.service != nil:
			s.SetService(o.service)
		case o.slice != nil:
			s.SetSlice(o.slice)
		default:
			s.SetNode(o.node)
		}
	}
}

func formatUpdate(u datapath.Update, problems []Problem) string {
	var b strings.Builder
	if u.Full {
		b.WriteString("full\n")
	}
	if u.LocalPods != nil {
		fmt.Fprintf(&b, "local pods %v %v\n", u.LocalPods.CIDRs, u.LocalPods.Interfaces)
	}
	for _, svc := range u.Services {
		_ = datapath.Format(&b, svc)
	}
	for _, name := range u.Removed {
		fmt.Fprintf(&b, "removed %s\n", name)
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
