package ebpf

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// errFull says that a map is too small for what was asked; larger maps help.
var errFull = errors.New("map is full")

// frontendStore is the frontends in the kernel. Put and Delete stop at the first failure and say how many
// went well; deleting an unknown frontend goes well.
type frontendStore interface {
	Put(keys []frontendKey, words []uint64) (int, error)
	Delete(keys []frontendKey) (int, error)
	All() (map[frontendKey]uint64, error)
}

// memory is what the tables are made of.
type memory struct {
	frontends frontendStore
	sets      []uint64     // mapped
	backends  []bpfBackend // mapped
	limit4    int          // frontends of IPv4 that fit
	limit6    int
}

// service is what the kernel holds of a Service.
type service struct {
	frontends []frontendKey
	sets      []setID
}

// set is what we know of a set beyond its content, which is read where it lies.
type set struct {
	owner *service // nil when no Service has claimed it since we started
	block block
	count uint32
	refs  int32 // frontends that lead to it
	used  bool
}

// frontend is where a frontend leads.
type frontend struct {
	set  setID
	seen uint32 // the number of the last full update that wanted it
}

// noSet is where a frontend leads whose element in the kernel makes no sense.
const noSet = ^setID(0)

// table is the content of the maps. Its methods keep the order of writes of the package comment.
type table struct {
	mem       memory
	frontends map[frontendKey]frontend
	ipv4      int // of the frontends
	sets      []set
	ids       idPool
	blocks    *allocator
	epoch     uint32
	writes    int64
	repaired  int64
	now       func() time.Time
}

func newTable(mem memory) *table {
	return &table{
		mem:       mem,
		frontends: map[frontendKey]frontend{},
		ids:       idPool{limit: setID(len(mem.sets))},
		blocks:    newAllocator(uint32(len(mem.backends))),
		now:       time.Now,
	}
}

// holds says whether a set in the kernel is exactly want.
func (t *table) holds(id setID, want []datapath.Backend) bool {
	s := &t.sets[id]
	if s.count != uint32(len(want)) || atomic.LoadUint64(&t.mem.sets[id]) != setWord(s.block.offset, s.count) {
		return false
	}
	for i, b := range t.mem.backends[s.block.offset:][:s.count] {
		if b != encodeBackend(want[i].Addr) {
			return false
		}
	}
	return true
}

// fill makes want the content of a set, in one store for every program that reads it.
func (t *table) fill(id setID, want []datapath.Backend) error {
	if t.holds(id, want) {
		return nil
	}
	now := t.now()
	b, ok := t.blocks.take(uint32(len(want)), now)
	if !ok {
		return fmt.Errorf("place %d backends: %w", len(want), errFull)
	}
	for i := range want {
		t.mem.backends[int(b.offset)+i] = encodeBackend(want[i].Addr)
	}
	s := &t.sets[id]
	atomic.StoreUint64(&t.mem.sets[id], setWord(b.offset, uint32(len(want))))
	t.writes += int64(len(want)) + 1
	t.blocks.retire(s.block, now)
	s.block, s.count = b, uint32(len(want))
	return nil
}

// newSet gives a Service a set.
func (t *table) newSet(owner *service) (setID, error) {
	id, ok := t.ids.take(t.now())
	if !ok {
		return 0, fmt.Errorf("number a backend set: %w", errFull)
	}
	t.use(id)
	t.sets[id].owner = owner
	owner.sets = append(owner.sets, id)
	return id, nil
}

func (t *table) use(id setID) {
	if int(id) >= len(t.sets) {
		t.sets = append(t.sets, make([]set, int(id)+1-len(t.sets))...)
	}
	t.sets[id] = set{used: true}
}

// claim finds the set of a Service that becomes want: one that is equal, or one that frontends of want and nobody else
// lead to, or one that no frontend leads to. Any other set must keep its content until its frontends are elsewhere.
// taken are the sets that other wants of the Service have.
func (t *table) claim(s *service, want *wantSet, taken []setID) (setID, bool) {
	free := func(id setID) bool {
		if id == noSet || slices.Contains(taken, id) {
			return false
		}
		return t.sets[id].owner == s || t.sets[id].owner == nil
	}
	near, leading := noSet, int32(0)
	for _, k := range want.frontends {
		f, ok := t.frontends[k]
		if !ok || !free(f.set) {
			continue
		}
		if t.holds(f.set, want.backends) {
			return f.set, true
		}
		if near == noSet {
			near = f.set
		}
		if near == f.set {
			leading++
		}
	}
	if near != noSet && leading == t.sets[near].refs {
		return near, true
	}
	for _, id := range s.sets {
		if free(id) && t.sets[id].refs == 0 {
			return id, true
		}
	}
	return noSet, false
}

// place brings the sets of a Service into the kernel: step 1. It returns their ids.
func (t *table) place(s *service, wants []wantSet) ([]setID, error) {
	ids := make([]setID, 0, len(wants))
	for i := range wants {
		id, ok := t.claim(s, &wants[i], ids)
		if !ok {
			var err error
			if id, err = t.newSet(s); err != nil {
				return nil, err
			}
		} else if t.sets[id].owner == nil {
			t.sets[id].owner = s
			s.sets = append(s.sets, id)
		}
		if err := t.fill(id, wants[i].backends); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// lead records that a frontend leads to a set.
func (t *table) lead(k frontendKey, id setID) {
	old, known := t.frontends[k]
	t.unref(old.set, known)
	if !known && isIPv4(k) {
		t.ipv4++
	}
	if id != noSet {
		t.sets[id].refs++
	}
	t.frontends[k] = frontend{id, t.epoch}
}

// forget records that a frontend is gone.
func (t *table) forget(k frontendKey) {
	old, known := t.frontends[k]
	if !known {
		return
	}
	t.unref(old.set, known)
	if isIPv4(k) {
		t.ipv4--
	}
	delete(t.frontends, k)
}

func (t *table) unref(id setID, known bool) {
	if known && id != noSet {
		t.sets[id].refs--
	}
}

// ownerOf is the Service a frontend belongs to in the kernel, nil if none has claimed its set.
func (t *table) ownerOf(f frontend) *service {
	if f.set == noSet {
		return nil
	}
	return t.sets[f.set].owner
}

// retire gives up those sets of a Service that are not in keep and that no frontend leads to: step 4.
func (t *table) retire(s *service, keep []setID) {
	kept := s.sets[:0]
	for _, id := range s.sets {
		if slices.Contains(keep, id) || t.sets[id].refs > 0 {
			kept = append(kept, id)
			continue
		}
		t.drop(id)
	}
	s.sets = kept
}

func (t *table) drop(id setID) {
	now := t.now()
	t.blocks.retire(t.sets[id].block, now)
	t.ids.retire(id, now)
	t.sets[id] = set{}
}
