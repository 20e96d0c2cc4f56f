package lab

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	errorsKept      = 10
	defaultInterval = 10 * time.Millisecond
)

// load is a LoadRequest being worked on inside of a worker.
type load struct {
	request LoadRequest
	stop    chan struct{}
	running sync.WaitGroup

	mu     sync.Mutex
	result LoadResult
}

func (w *worker) startLoad(r LoadRequest) (uint64, error) {
	if len(r.Targets) == 0 {
		return 0, errors.New("no targets")
	}
	if r.Workers == 0 && r.Held == 0 {
		r.Workers = 1
	}
	if r.Interval <= 0 {
		r.Interval = defaultInterval
	}
	l := &load{request: r, stop: make(chan struct{}), result: LoadResult{Backends: map[string]int{}}}
	for range r.Workers {
		l.running.Go(l.dialAll)
	}
	for i := range r.Held {
		l.running.Go(func() { l.hold(r.Targets[i%len(r.Targets)]) })
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	w.loads[w.last] = l
	return w.last, nil
}

func (w *worker) readLoad(id uint64) (LoadResult, error) {
	w.mu.Lock()
	l := w.loads[id]
	w.mu.Unlock()
	if l == nil {
		return LoadResult{}, errors.New("no such load")
	}
	return l.read(), nil
}

func (w *worker) stopLoad(id uint64) (LoadResult, error) {
	w.mu.Lock()
	l := w.loads[id]
	delete(w.loads, id)
	w.mu.Unlock()
	if l == nil {
		return LoadResult{}, errors.New("no such load")
	}
	close(l.stop)
	l.running.Wait()
	return l.read(), nil
}

func (l *load) read() LoadResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.result
	r.Backends, r.Errors = maps.Clone(r.Backends), slices.Clone(r.Errors)
	return r
}

// dialAll makes new connections until the load is stopped.
func (l *load) dialAll() {
	var pause time.Duration
	if l.request.Rate > 0 {
		pause = time.Second * time.Duration(l.request.Workers) / time.Duration(l.request.Rate)
	}
	for next := time.Now(); l.sleep(time.Until(next)); {
		target := l.request.Targets[rand.IntN(len(l.request.Targets))]
		l.count(target, dial(l.connection(target)))
		// A worker that fell behind does not make up for it with a burst.
		if next = next.Add(pause); time.Since(next) > time.Second {
			next = time.Now()
		}
	}
}

func (l *load) connection(target netip.AddrPort) Request {
	return Request{Network: l.request.Network, Addr: target, Connected: true, Timeout: l.request.Timeout}
}

func (l *load) count(target netip.AddrPort, a Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.Error != "" {
		l.result.Failures++
		l.keep(target, errors.New(a.Error))
		return
	}
	l.result.Connects++
	l.result.Backends[a.Backend]++
	l.result.Slowest = max(l.result.Slowest, a.Connect)
}

// hold keeps a connection to the target and sends requests on it, until the load is stopped.
func (l *load) hold(target netip.AddrPort) {
	for l.sleep(0) {
		err := l.useOne(target)
		if err == nil {
			return
		}
		l.mu.Lock()
		l.result.Resets++
		l.keep(target, fmt.Errorf("held connection: %w", err))
		l.mu.Unlock()
		l.sleep(l.request.Interval)
	}
}

// useOne makes one connection and uses it. It returns nil when the load is stopped.
func (l *load) useOne(target netip.AddrPort) error {
	s, err := openSocket(l.connection(target))
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.connect(); err != nil {
		return err
	}
	for l.sleep(l.request.Interval) {
		if _, err := s.ask(&Answer{}); err != nil {
			return err
		}
		l.mu.Lock()
		l.result.Requests++
		l.mu.Unlock()
	}
	return nil
}

// keep remembers an error if it is among the first. The caller holds the lock.
func (l *load) keep(target netip.AddrPort, err error) {
	if len(l.result.Errors) < errorsKept {
		at := time.Now().Format("15:04:05.000")
		l.result.Errors = append(l.result.Errors, fmt.Sprintf("%s %s %s: %v", at, l.request.Network, target, err))
	}
}

// sleep returns false if the load is stopped before the time is over.
func (l *load) sleep(d time.Duration) bool {
	if d <= 0 {
		select {
		case <-l.stop:
			return false
		default:
			return true
		}
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-l.stop:
		return false
	case <-t.C:
		return true
	}
}
