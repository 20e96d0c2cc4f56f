package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf/link"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// Entry is one frontend the hooks know.
type Entry struct {
	Frontend string   `json:"frontend"`
	Backends []string `json:"backends"`         // in the order of their slots
	Refused  bool     `json:"refused"`          // there is no backend, and clients see ECONNREFUSED
	Broken   bool     `json:"broken,omitempty"` // the maps contradict each other; the next full update repairs it
}

// Dump writes what the pinned maps say, one line per frontend, sorted. It needs no running agent, and nothing
// pinned is an empty dump.
func Dump(o Options, w io.Writer) error {
	entries, err := Read(o)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	for _, e := range entries {
		text := strings.Join(e.Backends, " ")
		switch {
		case e.Broken:
			text = "broken"
		case e.Refused:
			text = "refuse"
		}
		fmt.Fprintf(out, "%s -> %s\n", e.Frontend, text)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	return nil
}

// Read returns what the pinned maps say, sorted by frontend.
func Read(o Options) (entries []Entry, err error) {
	entries = []Entry{}
	m, err := openCurrent(o.PinDir)
	if m == nil || err != nil {
		return entries, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	all, err := m.memory().frontends.All()
	if err != nil {
		return nil, err
	}
	byAddr := make(map[datapath.Addr]Entry, len(all))
	for k, word := range all {
		byAddr[decodeFrontend(k)] = m.entry(k, word)
	}
	for _, a := range slices.SortedFunc(maps.Keys(byAddr), datapath.Addr.Compare) {
		entries = append(entries, byAddr[a])
	}
	return entries, nil
}

// openCurrent opens the maps in use for reading, nil if there are none.
func openCurrent(dir string) (*kernelMaps, error) {
	g, found, err := (&pins{dir: dir}).current()
	if err != nil || !found {
		return nil, err
	}
	if g.layout != layoutVersion {
		return nil, fmt.Errorf("open maps: they have layout %d, not %d", g.layout, layoutVersion)
	}
	return openMaps(filepath.Join(dir, g.String()), true)
}

// entry says where a frontend's element leads.
func (m *kernelMaps) entry(k frontendKey, word uint64) Entry {
	e := Entry{Frontend: decodeFrontend(k).String(), Backends: []string{}}
	print, id := decodeFrontendWord(word)
	if print != fingerprint(k) || int(id) >= len(m.sets) {
		e.Broken = true
		return e
	}
	offset, n := decodeSetWord(atomic.LoadUint64(&m.sets[id]))
	if uint64(offset)+uint64(n) > uint64(len(m.backends)) {
		e.Broken = true
		return e
	}
	for _, b := range m.backends[offset:][:n] {
		e.Backends = append(e.Backends, decodeBackend(b).String())
	}
	e.Refused = n == 0
	return e
}

// Hook is one of the attached programs.
type Hook struct {
	Name   string `json:"name"`
	Cgroup uint64 `json:"cgroup"` // id of the cgroup it is attached to; 0 if it is not attached
}

// Totals count what the programs did since their maps were made, on all CPUs.
type Totals struct {
	Connected uint64 `json:"connected"` // connects translated
	Sent      uint64 `json:"sent"`      // flows opened by unconnected UDP sockets
	Refused   uint64 `json:"refused"`   // refused for want of a backend
	Untracked uint64 `json:"untracked"` // left alone for want of memory for the socket's state
	Broken    uint64 `json:"broken"`    // left alone because the maps contradict each other; never seen in health
}

// Status is what is pinned, as far as it can be read without the agent.
type Status struct {
	Hooks     []Hook `json:"hooks"`
	Frontends int    `json:"frontends"`
	Totals    Totals `json:"totals"`
}

// ReadStatus reads the pinned links and maps.
func ReadStatus(o Options) (s Status, err error) {
	for _, h := range hooks {
		cgroup, err := readHook(filepath.Join(o.PinDir, h.name))
		if err != nil {
			return Status{}, fmt.Errorf("read hook %s: %w", h.name, err)
		}
		s.Hooks = append(s.Hooks, Hook{h.name, cgroup})
	}
	m, err := openCurrent(o.PinDir)
	if m == nil || err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	all, err := m.memory().frontends.All()
	if err != nil {
		return Status{}, err
	}
	s.Frontends = len(all)
	var perCPU []bpfTotals
	if err := m.byName[bpfMapCounters].Lookup(uint32(0), &perCPU); err != nil {
		return Status{}, fmt.Errorf("read counters: %w", err)
	}
	for _, t := range perCPU {
		s.Totals.Connected += t.Connected
		s.Totals.Sent += t.Sent
		s.Totals.Refused += t.Refused
		s.Totals.Untracked += t.Untracked
		s.Totals.Broken += t.Broken
	}
	return s, nil
}

// readHook returns the cgroup a pinned link is attached to, 0 if there is no link.
func readHook(path string) (cgroup uint64, err error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	if cg := info.Cgroup(); cg != nil {
		return cg.CgroupId, nil
	}
	return 0, nil
}
