package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/lbproxy/lbproxy/pkg/datapath"
	"github.com/lbproxy/lbproxy/pkg/endpoints"
)

// auditInterval is how often the datapath looks after what strangers may have removed.
const auditInterval = time.Second

// The pause before a failed write to the kernel is tried again, doubled each time.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// programmer brings what changes in the store to the datapath, as fast as that takes it: while one update is written the
// next one gathers.
type programmer struct {
	store *endpoints.Store
	dp    datapath.Datapath
	log   *slog.Logger

	failed []datapath.Update // to be tried again when retry fires
	retry  <-chan time.Time
	pause  time.Duration
	whole  bool   // the kernel has had the whole world once
	said   string // the last error logged: the same one is not logged again
}

func (p *programmer) run(ctx context.Context) error {
	p.pause = firstRetry
	audit := time.NewTicker(auditInterval)
	defer audit.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.retry:
			for _, u := range p.failed {
				p.store.Retry(u)
			}
			p.failed, p.retry = nil, nil
		case <-audit.C:
			if p.whole && p.retry == nil {
				if err := p.apply(ctx, datapath.Update{}); err != nil {
					return err
				}
			}
		case <-p.store.Changed():
			u := p.store.Take()
			if !u.Full && len(u.Services)+len(u.Removed) == 0 && u.LocalPods == nil {
				continue
			}
			if err := p.apply(ctx, u); err != nil {
				return err
			}
		}
	}
}

// apply applies one update. The error is that of the context; others are retried.
func (p *programmer) apply(ctx context.Context, u datapath.Update) error {
	begin, before := time.Now(), p.dp.Stats().Writes
	err := p.dp.Apply(ctx, u)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		p.whole = p.whole || u.Full
		p.log.Log(ctx, levelOf(u), "synced", "services", len(u.Services), "removed", len(u.Removed), "full", u.Full,
			"writes", p.dp.Stats().Writes-before, "took", time.Since(begin).Round(time.Microsecond))
		if p.retry == nil {
			p.pause, p.said = firstRetry, ""
		}
		return nil
	}
	if err.Error() != p.said {
		p.log.Error("sync failed, trying again", "err", err)
		p.said = err.Error()
	}
	pause := p.pause
	p.pause = min(2*p.pause, lastRetry)
	names, only := failedServices(err)
	switch {
	case only:
		p.whole = p.whole || u.Full
		// The others are served, and go on being served while these are tried again.
		u = datapath.Update{Removed: names}
	case u.Full:
		// Changes on top of a world that is not complete would take the rest of it away.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			p.store.Retry(u)
			return nil
		}
	}
	p.failed = append(p.failed, u)
	if p.retry == nil {
		p.retry = time.After(pause)
	}
	return nil
}

// failedServices returns the Services that err speaks of, and whether it speaks of nothing else.
func failedServices(err error) (names []datapath.Name, only bool) {
	if one, ok := err.(*datapath.ServiceError); ok { //nolint:errorlint // the tree is walked by hand, to see all of it
		return []datapath.Name{one.Service}, true
	}
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return nil, false
	}
	for _, e := range joined.Unwrap() {
		more, only := failedServices(e)
		if !only {
			return nil, false
		}
		names = append(names, more...)
	}
	return names, true
}

// levelOf is below debug for an audit that found nothing to say.
func levelOf(u datapath.Update) slog.Level {
	switch {
	case u.Full:
		return slog.LevelInfo
	case len(u.Services)+len(u.Removed) == 0:
		return slog.LevelDebug - 4
	}
	return slog.LevelDebug
}
