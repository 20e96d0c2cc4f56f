package ebpf

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
)

// adopt takes over what an earlier process left in the maps.
func (t *table) adopt() error {
	all, err := t.mem.frontends.All()
	if err != nil {
		return err
	}
	for k, word := range all {
		id := t.known(k, word)
		if id != noSet && !t.isUsed(id) {
			t.use(id)
		}
		t.lead(k, id)
	}
	t.adoptBlocks()
	t.ids.next = setID(len(t.sets))
	for id := range t.sets {
		if !t.sets[id].used {
			t.ids.free = append(t.ids.free, setID(id))
		}
	}
	return nil
}

// known returns the set an element of the kernel leads to, or noSet.
func (t *table) known(k frontendKey, word uint64) setID {
	print, id := decodeFrontendWord(word)
	if print != fingerprint(k) || id >= t.ids.limit {
		t.repaired++
		return noSet
	}
	return id
}

func (t *table) isUsed(id setID) bool { return int(id) < len(t.sets) && t.sets[id].used }

// adoptBlocks reads where the sets lie. A set whose block cannot be is left without one, so that it
// will differ from whatever is wanted and be written anew.
func (t *table) adoptBlocks() {
	type extent struct {
		block
		set, count uint32
	}
	var extents []extent
	for id := range t.sets {
		if !t.sets[id].used {
			continue
		}
		offset, n := decodeSetWord(atomic.LoadUint64(&t.mem.sets[id]))
		if n > 0 {
			extents = append(extents, extent{block{offset, blockSize(min(n, maxBackends+1))}, uint32(id), n})
		}
	}
	slices.SortFunc(extents, func(a, b extent) int { return cmp.Compare(a.offset, b.offset) })
	var used []block
	end := uint64(0)
	for _, e := range extents {
		last := uint64(e.offset) + uint64(e.size)
		if uint64(e.offset) < end || last > uint64(t.blocks.limit) || e.count > maxBackends {
			t.repaired++
			continue
		}
		t.sets[e.set].block, t.sets[e.set].count = e.block, e.count
		used, end = append(used, e.block), last
	}
	t.blocks.restore(used)
}

// audit looks for what a stranger changed in the kernel since we wrote it, so that a full update after it
// writes what is missing.
func (t *table) audit() error {
	all, err := t.mem.frontends.All()
	if err != nil {
		return fmt.Errorf("audit frontends: %w", err)
	}
	for k, f := range t.frontends {
		word, ok := all[k]
		if ok && f.set != noSet && word == frontendWord(k, f.set) {
			continue
		}
		t.repaired++
		if ok {
			t.lead(k, noSet)
		} else {
			t.forget(k)
		}
	}
	for k := range all {
		if _, ok := t.frontends[k]; !ok {
			t.repaired++
			t.lead(k, noSet)
		}
	}
	for id := range t.sets {
		s := &t.sets[id]
		if want := setWord(s.block.offset, s.count); s.used && atomic.LoadUint64(&t.mem.sets[id]) != want {
			t.repaired++
			t.writes++
			atomic.StoreUint64(&t.mem.sets[id], want)
		}
	}
	return nil
}

// copyTo fills the empty table n with what t holds. Set ids stay, blocks are laid out anew.
func (t *table) copyTo(n *table) error {
	n.now, n.epoch, n.repaired = t.now, t.epoch, t.repaired
	n.writes = t.writes
	n.sets = slices.Clone(t.sets)
	n.ids.next = setID(len(n.sets))
	for id := range n.sets {
		s := &n.sets[id]
		if !s.used {
			n.ids.free = append(n.ids.free, setID(id))
			continue
		}
		s.refs = 0
		b, ok := n.blocks.take(s.count, n.now())
		if !ok {
			return fmt.Errorf("copy backend sets: %w", errFull)
		}
		copy(n.mem.backends[b.offset:][:s.count], t.mem.backends[s.block.offset:][:s.count])
		atomic.StoreUint64(&n.mem.sets[id], setWord(b.offset, s.count))
		s.block = b
		n.writes += int64(s.count) + 1
	}
	return t.copyFrontends(n)
}

func (t *table) copyFrontends(n *table) error {
	var ipv4, ipv6 []frontendKey
	for k, f := range t.frontends {
		switch {
		case f.set == noSet:
			continue
		case isIPv4(k):
			ipv4 = append(ipv4, k)
		default:
			ipv6 = append(ipv6, k)
		}
	}
	keys := append(ipv4, ipv6...)
	values := make([]uint64, len(keys))
	for i, k := range keys {
		f := t.frontends[k]
		n.lead(k, f.set)
		n.frontends[k] = f
		values[i] = frontendWord(k, f.set)
	}
	done, err := n.mem.frontends.Put(keys, values)
	n.writes += int64(done)
	if err != nil {
		return fmt.Errorf("copy frontends: %w", err)
	}
	return nil
}
