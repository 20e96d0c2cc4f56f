package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/test/lab"
)

// The agent logs in JSON, so that the demo reads records and not prose.

// record is a log record of the agent.
type record struct {
	Level    string `json:"level"`
	Msg      string `json:"msg"`
	Err      string `json:"err"`
	EBPF     string `json:"ebpf"`
	NFTables string `json:"nftables"`
	Full     bool   `json:"full"`
	Writes   *int64 `json:"writes"`
}

// find returns the first record that matches.
func find(output string, match func(record) bool) (record, bool) {
	for line := range bytes.Lines([]byte(output)) {
		var r record
		if json.Unmarshal(line, &r) == nil && match(r) {
			return r, true
		}
	}
	return record{}, false
}

func isDatapaths(r record) bool { return r.Msg == "datapaths" }

func isFirstSync(r record) bool { return r.Msg == "synced" && r.Full }

// startAgent starts the agent and returns when it has programmed everything.
func (s *stage) startAgent(ctx context.Context) error {
	p, err := s.world.Node.Start(s.program, "--manifests", s.dir, "--proxy-mode", s.mode, "--hostname-override", "node",
		"--cluster-cidr", lab.Cluster4.String()+","+lab.Cluster6.String(), "--cgroup-root", s.world.Cgroup(), "--bpffs", s.world.BPFFS(),
		"--instance", "demo", "--log-format", "json")
	if err != nil {
		return err
	}
	s.agent = p
	patience := time.After(10 * time.Second)
	for {
		if _, ok := find(p.Output(), isFirstSync); ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.Done():
			return &agentError{said: lastWords(p.Output())}
		case <-patience:
			return &agentError{said: "not ready after 10 s: " + lastWords(p.Output())}
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// agentError says that the agent could not do its work.
type agentError struct{ said string }

// Error returns what the agent said.
func (e *agentError) Error() string { return "agent: " + e.said }

// lastWords returns the last line of a log, without the program's name in front.
func lastWords(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	last := lines[len(lines)-1]
	var r record
	if json.Unmarshal([]byte(last), &r) == nil {
		return strings.TrimSpace(fmt.Sprintf("%s %s", r.Msg, r.Err))
	}
	return strings.TrimPrefix(last, "lbproxy: ")
}
