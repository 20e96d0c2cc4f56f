package demo

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

var update = flag.Bool("update", false, "write the golden files")

// aReport has every kind of row, and every kind of trouble.
func aReport() *Report {
	web, edge, reports := &frontends[0], frontendOf("edge", datapath.LoadBalancer), frontendOf("reports", datapath.ClusterIP)
	cell := func(f *frontend, client string, c Cell) Cell {
		c.Service, c.Kind, c.Network, c.IPv4, c.IPv6 = f.service, f.kind.String(), f.network, f.v4, f.v6
		c.Policy, c.Client = f.policy(), client
		return c
	}
	run := func(mode string) ModeReport {
		return ModeReport{
			Mode: mode,
			Cells: []Cell{
				cell(web, fromPod, Cell{Made: 80, Answers: map[string]int{"web-2": 39, "web-1": 41}, Ratio: 1.004,
					Sources: map[string]int{"10.244.1.7": 40, "fd00:10:244:1::7": 40}}),
				cell(web, fromNode, Cell{Made: 80, Answers: map[string]int{"web-2": 38, "web-1": 42}, Ratio: 0.998,
					Sources: map[string]int{"10.244.1.1": 20, "172.18.0.11": 20, "fd00:10:244:1::1": 20, "fd00:172:18::11": 20}}),
				cell(edge, fromOutside, Cell{Made: 80, Answers: map[string]int{"edge-1": 80}, Ratio: 1.2,
					Sources: map[string]int{"172.18.0.100": 40, "fd00:172:18::100": 40}}),
				cell(reports, fromPod, Cell{Made: 80, Refused: 80}),
			},
			Steps: []StepResult{
				{Step: "web: 2 → 3 backends", New: 288, Held: 1056, Effect: 37499 * time.Microsecond},
				{Step: "agent started again", New: 290, Held: 1060, Effect: 12 * time.Millisecond, Note: "0 writes"},
			},
		}
	}
	bad := run("nftables")
	bad.Cells[1].Answers = map[string]int{"web-2": 77}
	bad.Cells[1].Problems = []string{"10.96.20.10:80: 3 of 40 failed: connect: connection timed out"}
	bad.Cells[1].Sources = map[string]int{"10.244.1.7": 40, "172.18.0.11": 37}
	bad.Steps[0].Failed, bad.Steps[0].Effect = 1, 0
	bad.Steps[0].Problems = []string{"held connection: recv: connection reset by peer"}
	return &Report{Runs: []ModeReport{run("auto"), bad}}
}

func frontendOf(service string, kind datapath.Kind) *frontend {
	for i := range frontends {
		if frontends[i].service == service && frontends[i].kind == kind {
			return &frontends[i]
		}
	}
	return nil
}

func TestText(t *testing.T) {
	missing := aReport()
	missing.Runs[0] = ModeReport{Mode: "auto", Missing: "load BPF programs: operation not permitted"}
	alone := &Report{Runs: aReport().Runs[:1]}
	alone.Runs[0].Note = "the eBPF hook cannot work on this machine (no BPF): all is done by nftables"
	for name, r := range map[string]*Report{"both": aReport(), "missing": missing, "alone": alone} {
		t.Run(name, func(t *testing.T) {
			golden := filepath.Join("testdata", name+".golden")
			text := Text(r, false)
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(text), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), text)
			for line := range strings.Lines(text) {
				require.LessOrEqual(t, width(strings.TrimSuffix(line, "\n")), 110, line)
				require.Equal(t, trim(strings.TrimSuffix(line, "\n")), strings.TrimSuffix(line, "\n"), "trailing space")
			}
			coloured := Text(r, true)
			require.Contains(t, coloured, "\x1b[1m")
			require.Equal(t, text, escapes.ReplaceAllString(coloured, ""), "colours change nothing but colours")
		})
	}
}

func TestCounts(t *testing.T) {
	r := aReport()
	require.Equal(t, 2, r.wrong())
	require.Equal(t, 2*(4*80+288+290), r.connections())
}
