package nftables

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// Entry is one frontend as the kernel has it.
type Entry struct {
	Frontend datapath.Addr    `json:"frontend"`
	Inside   []netip.AddrPort `json:"inside,omitempty"` // only where clients on this node get other backends
	Backends []netip.AddrPort `json:"backends,omitempty"`
	Verdict  string           `json:"verdict,omitempty"` // reject or drop, where there are no backends
}

// Dump reads the tables of o from the kernel, without an agent, and writes them sorted: a frontend and its backends a
// line.
func Dump(o Options, w io.Writer) error {
	entries, err := Read(o)
	if err != nil {
		return err
	}
	for _, e := range entries {
		line := fmt.Sprintf("%s -> %s", e.Frontend, orVerdict(e.Backends, e.Verdict))
		if len(e.Inside) > 0 {
			line += " (clients on this node: " + orVerdict(e.Inside, "") + ")"
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

func orVerdict(backends []netip.AddrPort, verdict string) string {
	if len(backends) == 0 {
		return verdict
	}
	words := make([]string, len(backends))
	for i, b := range backends {
		words[i] = b.String()
	}
	return strings.Join(words, " ")
}

// Read returns the frontends in the tables of o, sorted.
func Read(o Options) ([]Entry, error) {
	d, err := connect(o)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(d.adopt(), d.Close()); err != nil {
		return nil, err
	}
	byAddr := map[datapath.Addr]*Entry{}
	for e := range d.strays.elements {
		switch e.set {
		case frontendsMap, rejectedSet, droppedSet:
			a, err := tupleAddr(e.key)
			if err != nil {
				return nil, err
			}
			if byAddr[a] == nil {
				byAddr[a] = d.strays.entry(a)
			}
		}
	}
	entries := make([]Entry, 0, len(byAddr))
	for _, e := range byAddr {
		entries = append(entries, *e)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return a.Frontend.Compare(b.Frontend) })
	return entries, nil
}

func (s *strays) entry(a datapath.Addr) *Entry {
	e := &Entry{Frontend: a, Inside: s.backends(a, true), Backends: s.backends(a, false)}
	id := element{ipv6: a.Addr().Is6(), set: rejectedSet, key: tupleKey(a)}
	if _, ok := s.elements[id]; ok {
		e.Verdict = datapath.Reject.String()
	}
	id.set = droppedSet
	if _, ok := s.elements[id]; ok {
		e.Verdict = datapath.Drop.String()
	}
	return e
}

// backends returns the backends a frontend leads to, sorted.
func (s *strays) backends(a datapath.Addr, inside bool) []netip.AddrPort {
	set, _ := s.set(a, inside)
	addrs := make([]netip.AddrPort, len(set.slots))
	for i, b := range set.slots {
		addrs[i] = b.Addr
	}
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	return addrs
}
