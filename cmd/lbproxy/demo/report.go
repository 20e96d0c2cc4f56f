package demo

import (
	"net/netip"
	"time"
)

// Report is what a demo found.
type Report struct {
	Runs []ModeReport `json:"runs"`
}

// ModeReport is what was found with one proxy mode.
type ModeReport struct {
	Mode string `json:"mode"`
	// Missing says why there are no results: this machine cannot do it.
	Missing string `json:"missing,omitempty"`
	// Note is what to know about the results.
	Note  string       `json:"note,omitempty"`
	Cells []Cell       `json:"cells,omitempty"`
	Steps []StepResult `json:"steps,omitempty"`
}

// Cell is what became of the connections from one kind of client to one frontend, over IPv4 and IPv6.
type Cell struct {
	Service  string         `json:"service"`
	Kind     string         `json:"kind"`
	Network  string         `json:"network"`
	IPv4     netip.AddrPort `json:"ipv4"`
	IPv6     netip.AddrPort `json:"ipv6"`
	Policy   string         `json:"policy,omitempty"` // what is special about the frontend
	Client   string         `json:"client"`
	Made     int            `json:"made"`    // connections, or requests over UDP
	Refused  int            `json:"refused"` // of them
	Answers  map[string]int `json:"answers"` // by backend
	Sources  map[string]int `json:"sources"` // by the client's address as backends saw it
	Ratio    float64        `json:"ratio"`   // median time to connect, as a multiple of dialing the same pod directly; 0 if nobody answered
	Problems []string       `json:"problems,omitempty"`
}

// StepResult is what happened while one change was made and connections went on.
type StepResult struct {
	Step   string        `json:"step"`
	Effect time.Duration `json:"effectNanoseconds"` // until the change was seen by all clients; 0 if there is nothing to see
	// Note is what else is to be said.
	Note     string   `json:"note,omitempty"`
	New      int      `json:"new"`    // new connections that were answered
	Held     int      `json:"held"`   // requests on connections that were there before
	Failed   int      `json:"failed"` // of either kind
	Problems []string `json:"problems,omitempty"`
}

// connections returns how many connections the report is about.
func (r *Report) connections() int {
	n := 0
	for _, run := range r.Runs {
		for _, c := range run.Cells {
			n += c.Made
		}
		for _, s := range run.Steps {
			n += s.New
		}
	}
	return n
}

// wrong returns how much was not as it has to be.
func (r *Report) wrong() int {
	n := 0
	for _, run := range r.Runs {
		for _, c := range run.Cells {
			n += len(c.Problems)
		}
		for _, s := range run.Steps {
			n += len(s.Problems)
		}
	}
	return n
}

// newModeReport describes the run on a stage. Where the hook cannot work, auto is nftables alone, which beside it has nothing to show.
func newModeReport(s *stage, besideOthers bool) ModeReport {
	run := ModeReport{Mode: s.mode}
	switch {
	case s.mode == "nftables" || s.sockets:
	case besideOthers:
		run.Missing = s.why
	default:
		run.Note = "the eBPF hook cannot work on this machine (" + s.why + "): all is done by nftables"
	}
	return run
}
