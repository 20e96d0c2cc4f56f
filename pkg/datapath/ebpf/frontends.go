package ebpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// batchLen bounds what one system call writes or reads.
const batchLen = 16 << 10

// kernelFrontends is the two frontend maps as one.
type kernelFrontends struct{ ipv4, ipv6 *ebpf.Map }

// Put writes in batches of one family each.
func (k *kernelFrontends) Put(keys []frontendKey, words []uint64) (int, error) {
	return k.eachRun(keys, func(start, end int) (int, error) {
		part, values := keys[start:end], words[start:end]
		var n int
		var err error
		if isIPv4(part[0]) {
			n, err = putAll(k.ipv4, narrowAll(part), values)
		} else {
			n, err = putAll(k.ipv6, part, values)
		}
		if err != nil {
			err = fmt.Errorf("put frontend %s: %w", decodeFrontend(part[n]), err)
		}
		return n, err
	})
}

// Delete deletes in batches of one family each.
func (k *kernelFrontends) Delete(keys []frontendKey) (int, error) {
	return k.eachRun(keys, func(start, end int) (int, error) {
		part := keys[start:end]
		var n int
		var err error
		if isIPv4(part[0]) {
			n, err = deleteAll(k.ipv4, narrowAll(part))
		} else {
			n, err = deleteAll(k.ipv6, part)
		}
		if err != nil {
			err = fmt.Errorf("delete frontend %s: %w", decodeFrontend(part[n]), err)
		}
		return n, err
	})
}

// All reads both maps.
func (k *kernelFrontends) All() (map[frontendKey]uint64, error) {
	all := map[frontendKey]uint64{}
	err := errors.Join(
		readAll(k.ipv4, func(key bpfFrontends4Key, word uint64) { all[widen(key)] = word }),
		readAll(k.ipv6, func(key bpfFrontends6Key, word uint64) { all[key] = word }))
	if err != nil {
		return nil, fmt.Errorf("read frontends: %w", err)
	}
	return all, nil
}

// eachRun calls do for runs of keys of one family and returns how many keys went well before the first error.
func (k *kernelFrontends) eachRun(keys []frontendKey, do func(start, end int) (int, error)) (int, error) {
	for start := 0; start < len(keys); {
		end := start + 1
		for end < len(keys) && end-start < batchLen && isIPv4(keys[end]) == isIPv4(keys[start]) {
			end++
		}
		if n, err := do(start, end); err != nil {
			return start + n, err
		}
		start = end
	}
	return len(keys), nil
}

func narrowAll(keys []frontendKey) []bpfFrontends4Key {
	n := make([]bpfFrontends4Key, len(keys))
	for i, k := range keys {
		n[i] = narrow(k)
	}
	return n
}

func putAll[K any](m *ebpf.Map, keys []K, words []uint64) (int, error) {
	if len(keys) > 1 {
		n, err := m.BatchUpdate(keys, words, nil)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return n, err
		}
	}
	for i := range keys {
		if err := m.Update(&keys[i], words[i], ebpf.UpdateAny); err != nil {
			return i, err
		}
	}
	return len(keys), nil
}

// deleteAll takes a key that is not there for deleted.
func deleteAll[K any](m *ebpf.Map, keys []K) (int, error) {
	for done := 0; done < len(keys); {
		n, err := m.BatchDelete(keys[done:], nil)
		switch {
		case err == nil:
			return len(keys), nil
		case errors.Is(err, ebpf.ErrKeyNotExist):
			done += n + 1
		case errors.Is(err, ebpf.ErrNotSupported):
			return deleteEach(m, keys)
		default:
			return done + n, err
		}
	}
	return len(keys), nil
}

func deleteEach[K any](m *ebpf.Map, keys []K) (int, error) {
	for i := range keys {
		if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return i, err
		}
	}
	return len(keys), nil
}

func readAll[K any](m *ebpf.Map, each func(K, uint64)) error {
	size := min(batchLen, int(m.MaxEntries()))
	keys, words := make([]K, size), make([]uint64, size)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, words, nil)
		if errors.Is(err, ebpf.ErrNotSupported) {
			return readEach(m, each)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			each(keys[i], words[i])
		}
		if err != nil {
			return nil
		}
	}
}

func readEach[K any](m *ebpf.Map, each func(K, uint64)) error {
	var key K
	var word uint64
	i := m.Iterate()
	for i.Next(&key, &word) {
		each(key, word)
	}
	return i.Err()
}
