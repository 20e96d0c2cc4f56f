package ebpf

import (
	"errors"
	"slices"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// job is one Service on its way into the kernel.
type job struct {
	name    datapath.Name
	service *service
	wants   []wantSet
	ids     []setID       // of wants, once they are placed
	keep    []frontendKey // frontends that could not be deleted
	removed bool          // the Service is gone
	err     error
}

func (j *job) fail(err error) {
	if j.err == nil {
		j.err = err
	}
}

// unchanged says that the Service has exactly the frontends it had: the usual case, told without a map.
func (j *job) unchanged() bool {
	had := j.service.frontends
	for i := range j.wants {
		n := len(j.wants[i].frontends)
		if len(had) < n || !slices.Equal(had[:n], j.wants[i].frontends) {
			return false
		}
		had = had[n:]
	}
	return len(had) == 0
}

// update brings jobs into the kernel. spare are frontends that a full update leaves alone although no job wants them.
// It returns errFull, having broken nothing, when larger maps are needed; other failures are left in the jobs and
// returned if they concern none.
func (t *table) update(jobs []*job, full bool, spare []frontendKey) error {
	if full {
		t.epoch++
		for _, k := range spare {
			t.see(k)
		}
	}
	for _, j := range jobs {
		ids, err := t.place(j.service, j.wants)
		if err != nil {
			return err
		}
		j.ids = ids
	}
	failed, err := t.putFrontends(jobs)
	if err != nil {
		return err
	}
	t.deleteFrontends(jobs, failed)
	if full {
		err = t.deleteStrangers()
	}
	for _, j := range jobs {
		t.settle(j)
	}
	if full {
		t.retireStrangers()
	}
	return err
}

func (t *table) see(k frontendKey) {
	if f, ok := t.frontends[k]; ok {
		f.seen = t.epoch
		t.frontends[k] = f
	}
}

// write is a frontend to put or delete.
type write struct {
	key frontendKey
	set setID
	job *job
}

// putFrontends is step 2. It returns the frontends that could not be put.
func (t *table) putFrontends(jobs []*job) (map[frontendKey]bool, error) {
	var ipv4, ipv6 []write
	new4, new6 := 0, 0
	for _, j := range jobs {
		for i := range j.wants {
			for _, k := range j.wants[i].frontends {
				f, known := t.frontends[k]
				if known && f.set == j.ids[i] {
					if f.seen != t.epoch {
						t.see(k)
					}
					continue
				}
				if isIPv4(k) {
					ipv4 = append(ipv4, write{k, j.ids[i], j})
					new4 += count(!known)
				} else {
					ipv6 = append(ipv6, write{k, j.ids[i], j})
					new6 += count(!known)
				}
			}
		}
	}
	if t.ipv4+new4 > t.mem.limit4 || len(t.frontends)-t.ipv4+new6 > t.mem.limit6 {
		return nil, errFull
	}
	// One family after the other, for large batches.
	return t.put(append(ipv4, ipv6...)), nil
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (t *table) put(writes []write) (failed map[frontendKey]bool) {
	keys := make([]frontendKey, len(writes))
	values := make([]uint64, len(writes))
	for i, w := range writes {
		keys[i], values[i] = w.key, frontendWord(w.key, w.set)
	}
	for start := 0; start < len(writes); {
		n, err := t.mem.frontends.Put(keys[start:], values[start:])
		for _, w := range writes[start : start+n] {
			t.lead(w.key, w.set)
		}
		t.writes += int64(n)
		start += n
		if err != nil {
			if failed == nil {
				failed = map[frontendKey]bool{}
			}
			failed[writes[start].key] = true
			writes[start].job.fail(err)
			t.see(writes[start].key)
			start++
		}
	}
	return failed
}

// deleteFrontends is step 3: it removes what a Service had and does not want any more, unless another Service has it
// now, or would have it if it could have been put.
func (t *table) deleteFrontends(jobs []*job, failed map[frontendKey]bool) {
	var writes []write
	for _, j := range jobs {
		if j.unchanged() {
			continue
		}
		wanted := map[frontendKey]bool{}
		for i := range j.wants {
			for _, k := range j.wants[i].frontends {
				wanted[k] = true
			}
		}
		for _, k := range j.service.frontends {
			f, ok := t.frontends[k]
			if !ok || wanted[k] || t.ownerOf(f) != j.service {
				continue
			}
			if failed[k] {
				j.keep = append(j.keep, k)
				continue
			}
			writes = append(writes, write{key: k, job: j})
		}
	}
	t.delete(writes, func(w write, err error) {
		w.job.fail(err)
		w.job.keep = append(w.job.keep, w.key)
		t.see(w.key)
	})
}

// deleteStrangers removes what a full update does not want.
func (t *table) deleteStrangers() error {
	var writes []write
	for k, f := range t.frontends {
		if f.seen != t.epoch {
			writes = append(writes, write{key: k})
		}
	}
	var errs []error
	t.delete(writes, func(_ write, err error) { errs = append(errs, err) })
	return errors.Join(errs...)
}

func (t *table) delete(writes []write, failed func(write, error)) {
	keys := make([]frontendKey, len(writes))
	for i, w := range writes {
		keys[i] = w.key
	}
	for start := 0; start < len(writes); {
		n, err := t.mem.frontends.Delete(keys[start:])
		for _, k := range keys[start : start+n] {
			t.forget(k)
		}
		t.writes += int64(n)
		start += n
		if err != nil {
			failed(writes[start], err)
			start++
		}
	}
}

// settle makes the service of a job say what the kernel holds now.
func (t *table) settle(j *job) {
	t.retire(j.service, j.ids)
	if j.unchanged() && len(j.keep) == 0 {
		return
	}
	j.service.frontends = j.keep
	for i := range j.wants {
		j.service.frontends = append(j.service.frontends, j.wants[i].frontends...)
	}
}

// retireStrangers gives up adopted sets that no Service claimed.
func (t *table) retireStrangers() {
	for id := range t.sets {
		if s := &t.sets[id]; s.used && s.owner == nil && s.refs == 0 {
			t.drop(setID(id))
		}
	}
}
