package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// fakeFrontends is frontends in memory. look sees the kernel's state before and after every single write; the write
// number fail fails.
type fakeFrontends struct {
	all  map[frontendKey]uint64
	look func()
	n    int
	fail int
}

var errInjected = errors.New("injected")

func (f *fakeFrontends) step() error {
	f.look()
	f.n++
	if f.n == f.fail {
		return errInjected
	}
	return nil
}

func (f *fakeFrontends) Put(keys []frontendKey, words []uint64) (int, error) {
	for i := range keys {
		if err := f.step(); err != nil {
			return i, err
		}
		f.all[keys[i]] = words[i]
		f.look()
	}
	return len(keys), nil
}

func (f *fakeFrontends) Delete(keys []frontendKey) (int, error) {
	for i := range keys {
		if err := f.step(); err != nil {
			return i, err
		}
		delete(f.all, keys[i])
		f.look()
	}
	return len(keys), nil
}

func (f *fakeFrontends) All() (map[frontendKey]uint64, error) { return maps.Clone(f.all), nil }

// fakeKernel is a Datapath without programs and links, on a fake store and plain memory.
func fakeKernel(size sizes) (*Datapath, *fakeFrontends) {
	f := &fakeFrontends{all: map[frontendKey]uint64{}, look: func() {}}
	mem := memory{
		frontends: f, sets: make([]uint64, size.sets), backends: make([]bpfBackend, size.backends),
		limit4: size.frontends4, limit6: size.frontends6,
	}
	return &Datapath{canRefuse: true, services: map[datapath.Name]*service{}, table: newTable(mem)}, f
}

// update is Apply without growth and attachment.
func (d *Datapath) update(u datapath.Update) error {
	jobs, spare, faults := d.plan(u)
	if err := d.table.update(jobs, u.Full, spare); err != nil {
		return err
	}
	return errors.Join(append(faults, d.finish(jobs)...)...)
}

// reaches is what a program would find now: for each frontend its backends.
func reaches(t *table, all map[frontendKey]uint64) map[string]string {
	got := map[string]string{}
	for k, word := range all {
		m := &kernelMaps{sets: t.mem.sets, backends: t.mem.backends}
		e := m.entry(k, word)
		got[e.Frontend] = strings.Join(e.Backends, " ")
		if e.Refused {
			got[e.Frontend] = "refuse"
		}
		if e.Broken {
			got[e.Frontend] = "broken"
		}
	}
	return got
}

func wanted(list []*datapath.Service) map[string]string {
	want := map[string]string{}
	for _, s := range list {
		sets, _ := plan(s, true)
		for _, w := range sets {
			var b []string
			for _, backend := range w.backends {
				b = append(b, backend.Addr.String())
			}
			for _, k := range w.frontends {
				want[decodeFrontend(k).String()] = strings.Join(b, " ")
			}
		}
	}
	for k, v := range want {
		if v == "" {
			want[k] = "refuse"
		}
	}
	return want
}

// TestEveryStep stops at every write of random updates, and fails every one of them once. At each instant a frontend
// reaches its old backends or its new ones, and nothing else.
func TestEveryStep(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		worlds := [][]*datapath.Service{randomWorld(rnd), randomWorld(rnd), randomWorld(rnd)}
		for fail := 0; ; fail++ {
			d, kernel := fakeKernel(sizes{1000, 1000, 1000, 10000})
			require.NoError(t, d.update(full(worlds[0]...)))
			if fail%2 == 1 { // by a new process
				restarted, _ := fakeKernel(sizes{1000, 1000, 1000, 10000})
				restarted.table = newTable(d.table.mem)
				require.NoError(t, restarted.table.adopt())
				d = restarted
			}
			writes := 0
			for i := range worlds[1:] {
				old, next := wanted(worlds[i]), wanted(worlds[i+1])
				kernel.look = func() { requireOneOf(t, reaches(d.table, kernel.all), old, next) }
				kernel.n, kernel.fail = 0, fail
				err := d.update(full(worlds[i+1]...))
				writes = max(writes, kernel.n)
				if fail > 0 && kernel.n >= fail {
					require.ErrorIs(t, err, errInjected)
					kernel.fail = 0
					err = d.update(full(worlds[i+1]...))
				}
				require.NoError(t, err)
				require.Equal(t, next, reaches(d.table, kernel.all), "seed %d fail %d", seed, fail)
				requireSound(t, d.table)
			}
			if fail > writes {
				break
			}
		}
	}
}

func requireOneOf(t *testing.T, got, old, next map[string]string) {
	t.Helper()
	for addr, b := range got {
		if b != old[addr] && b != next[addr] {
			require.Failf(t, "wrong backends", "%s reaches %q, neither %q nor %q", addr, b, old[addr], next[addr])
		}
	}
	for addr := range old {
		if _, stays := next[addr]; stays {
			require.Contains(t, got, addr, "was served and is to be served")
		}
	}
}

// requireSound checks that blocks in use do not overlap and that reference counts are right.
func requireSound(t *testing.T, table *table) {
	t.Helper()
	refs := map[setID]int32{}
	for _, f := range table.frontends {
		refs[f.set]++
	}
	var used []block
	for id := range table.sets {
		s := table.sets[id]
		require.Equal(t, refs[setID(id)], s.refs)
		if s.used {
			require.Positive(t, s.refs, "a set nobody leads to is retired")
			used = append(used, s.block)
		}
	}
	used = slices.DeleteFunc(used, func(b block) bool { return b.size == 0 })
	slices.SortFunc(used, func(a, b block) int { return int(a.offset) - int(b.offset) })
	for i := 1; i < len(used); i++ {
		require.LessOrEqual(t, used[i-1].offset+used[i-1].size, used[i].offset)
	}
}

// randomWorld has Services that share names, addresses and backends with other random worlds.
func randomWorld(rnd *rand.Rand) []*datapath.Service {
	var list []*datapath.Service
	addrs := rnd.Perm(8)
	for i := range 3 {
		s := svc(fmt.Sprint(rnd.IntN(2)*10 + i))
		for range rnd.IntN(3) {
			if len(addrs) == 0 {
				break
			}
			s.Ports = append(s.Ports, randomPort(rnd, &addrs))
		}
		list = append(list, s)
	}
	return list
}

func randomPort(rnd *rand.Rand, addrs *[]int) datapath.Port {
	p := datapath.Port{Protocol: datapath.TCP, Sets: make([][]datapath.Backend, 2)}
	for i := range p.Sets {
		for range rnd.IntN(4) {
			p.Sets[i] = append(p.Sets[i], backends(fmt.Sprintf("10.1.0.%d:80", 1+rnd.IntN(4)))...)
		}
		slices.SortFunc(p.Sets[i], datapath.Backend.Compare)
		p.Sets[i] = slices.Compact(p.Sets[i])
	}
	for range 1 + rnd.IntN(2) {
		if n := len(*addrs); n > 0 {
			f := port(fmt.Sprintf("10.0.0.%d:80/TCP", 1+(*addrs)[n-1])).Frontends[0]
			f.Inside.Set = rnd.IntN(2)
			p.Frontends = append(p.Frontends, f)
			*addrs = (*addrs)[:n-1]
		}
	}
	return p
}

// TestQuarantine: what was retired is not written for a second.
func TestQuarantine(t *testing.T) {
	d, _ := fakeKernel(sizes{10, 10, 10, 16})
	now := time.Now()
	d.table.now = func() time.Time { return now }
	flip := func(version int) error { return d.update(changed(numbered(0, version, 4))) }
	for v := range 4 {
		require.NoError(t, flip(v))
	}
	require.ErrorIs(t, flip(4), errFull, "four blocks of four, three of them in quarantine")
	now = now.Add(graceTime - 1)
	require.ErrorIs(t, flip(4), errFull)
	now = now.Add(1)
	require.NoError(t, flip(4))

	require.NoError(t, d.update(full()))
	id := setID(0)
	require.Equal(t, set{}, d.table.sets[id])
	for range 9 {
		got, ok := d.table.ids.take(now)
		require.True(t, ok)
		require.NotEqual(t, id, got)
	}
	_, ok := d.table.ids.take(now)
	require.False(t, ok)
	got, ok := d.table.ids.take(now.Add(graceTime))
	require.True(t, ok)
	require.Equal(t, id, got)
}

func TestAllocator(t *testing.T) {
	for n := uint32(1); n < 5000; n++ {
		size := blockSize(n)
		require.GreaterOrEqual(t, size, n)
		require.LessOrEqual(t, 4*size, 5*n+3)
		require.Equal(t, size, blockSize(size))
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	a := newAllocator(4096)
	now := time.Now()
	held := map[uint32]block{}
	for range 20000 {
		now = now.Add(10 * time.Millisecond)
		if n := uint32(rnd.IntN(40)); rnd.IntN(2) == 0 {
			if b, ok := a.take(n, now); ok && n > 0 {
				require.LessOrEqual(t, b.offset+b.size, a.limit)
				require.NotContains(t, held, b.offset)
				held[b.offset] = b
			}
		} else {
			for offset, b := range held {
				a.retire(b, now)
				delete(held, offset)
				break
			}
		}
		if rnd.IntN(1000) == 0 { // a restart
			used := slices.SortedFunc(maps.Values(held), func(a, b block) int { return int(a.offset) - int(b.offset) })
			a.restore(used)
			requireDisjoint(t, a, used)
		}
	}
}

// requireDisjoint checks that used and free blocks share nothing.
func requireDisjoint(t *testing.T, a *allocator, used []block) {
	t.Helper()
	taken := make([]bool, a.limit)
	mark := func(b block) {
		for i := b.offset; i < b.offset+b.size; i++ {
			require.False(t, taken[i])
			taken[i] = true
		}
	}
	for _, b := range used {
		mark(b)
	}
	for size, offsets := range a.free {
		for _, offset := range offsets {
			mark(block{offset, size})
		}
	}
}

// TestDeltas changes one Service at a time: the kernel must end up with exactly what the Services want, and not a
// frontend more, whatever ports came and went.
func TestDeltas(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		d, kernel := fakeKernel(sizes{1000, 1000, 1000, 10000})
		require.NoError(t, d.update(full()))
		have := map[datapath.Name]*datapath.Service{}
		for range 40 {
			u := datapath.Update{}
			for _, s := range randomWorld(rnd) {
				// An address may have had another owner: only those that fit what is there can come.
				if taken(have, s) {
					continue
				}
				if have[s.Name] != nil && rnd.IntN(3) == 0 {
					u.Removed = append(u.Removed, s.Name)
					delete(have, s.Name)
					continue
				}
				u.Services = append(u.Services, s)
				have[s.Name] = s
			}
			require.NoError(t, d.update(u))
			require.Equal(t, wanted(slices.Collect(maps.Values(have))), reaches(d.table, kernel.all), "seed %d", seed)
		}
	}
}

// taken says whether another Service has an address of s.
func taken(have map[datapath.Name]*datapath.Service, s *datapath.Service) bool {
	for name, other := range have {
		for _, k := range frontendsOf(other) {
			if name != s.Name && slices.Contains(frontendsOf(s), k) {
				return true
			}
		}
	}
	return false
}
