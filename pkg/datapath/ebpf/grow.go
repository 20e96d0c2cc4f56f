package ebpf

import (
	"errors"
	"fmt"
)

// grow moves to new maps that hold what the old ones do and have room for jobs. The new maps are complete before any
// program uses them; the programs then change hook by hook, each in one step, and the old and the new maps say the
// same until all have changed.
func (d *Datapath) grow(jobs []*job) error {
	size := d.least.fit(d.demand(jobs))
	m, err := createMaps(size, d.maps)
	if err != nil {
		return fmt.Errorf("grow: %w", err)
	}
	t := newTable(m.memory())
	if d.table != nil {
		if err := d.table.copyTo(t); err != nil {
			return errors.Join(fmt.Errorf("grow: %w", err), m.close())
		}
	}
	p, err := loadPrograms(m, d.canRefuse)
	if err != nil {
		return errors.Join(fmt.Errorf("grow: %w", err), m.close())
	}
	if err := d.pins.publish(m); err != nil {
		return errors.Join(fmt.Errorf("grow: %w", err), p.close(), m.close())
	}
	oldMaps, oldPrograms := d.maps, d.programs
	d.maps, d.table, d.programs = m, t, p
	d.log.Debug("new maps", "frontends4", size.frontends4, "frontends6", size.frontends6, "sets", size.sets, "backends", size.backends)
	err = oldPrograms.close()
	if oldMaps != nil {
		err = errors.Join(err, oldMaps.close())
	}
	if d.attached {
		err = errors.Join(err, d.attach())
	}
	return err
}

// demand is what is held and what jobs want, as if all of it were new: a change needs both for a while.
func (d *Datapath) demand(jobs []*job) sizes {
	var n sizes
	if t := d.table; t != nil {
		n.frontends4, n.frontends6 = t.ipv4, len(t.frontends)-t.ipv4
		for i := range t.sets {
			if t.sets[i].used {
				n.sets++
				n.backends += int(t.sets[i].block.size)
			}
		}
		// Ids stay, so the array must reach the highest.
		n.sets = max(n.sets, (len(t.sets)+1)/2)
	}
	for _, j := range jobs {
		for i := range j.wants {
			w := &j.wants[i]
			n.sets++
			n.backends += int(blockSize(uint32(len(w.backends))))
			if len(w.frontends) > 0 && isIPv4(w.frontends[0]) {
				n.frontends4 += len(w.frontends)
			} else {
				n.frontends6 += len(w.frontends)
			}
		}
	}
	return n
}
