package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// Options say what to show and where.
type Options struct {
	Modes    []string // proxy modes, shown side by side
	Program  string   // the agent: path of the lbproxy program
	Out      io.Writer
	Style    Style
	JSON     bool
	Progress *os.File // Optional. Where to say what is being done, if it is a terminal.
}

// show is a demo in progress.
type show struct {
	Options
	progress progress
	begin    time.Time
	report   Report
	stages   []*stage // of the runs that are not missing, in their order
}

// Run shows the demo and removes everything it made. It returns an error if anything was not as it has to be, or if ctx ended.
func Run(ctx context.Context, o Options) error {
	d := &show{Options: o, progress: newProgress(o.Progress), begin: time.Now()}
	err := d.run(ctx)
	d.progress.clear()
	if e := d.close(); e != nil {
		return errors.Join(err, fmt.Errorf("remove what the demo made: %w", e))
	}
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted; everything the demo made is removed")
	case err != nil:
		return err
	}
	return d.finish()
}

func (d *show) run(ctx context.Context) error {
	d.print(intro(d.Style))
	for _, mode := range d.Modes {
		if err := d.measure(ctx, mode); err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
	}
	d.progress.clear()
	d.print(connections(&d.report, d.Style))
	for _, s := range d.stages {
		if err := s.startLoads(); err != nil {
			return err
		}
	}
	d.print(stepsHead(&d.report, d.Style))
	for i, st := range steps {
		d.progress.say("%s", st.name)
		if err := d.step(ctx, st); err != nil {
			return err
		}
		d.progress.clear()
		d.print(stepLine(&d.report, i, d.Style))
	}
	return nil
}

// measure opens a stage and dials everything in it.
func (d *show) measure(ctx context.Context, mode string) error {
	d.progress.say("%s: building the world and starting the agent", mode)
	s, err := openStage(ctx, mode, d.Program)
	// Kept also after an error: it has to be closed.
	d.stages = append(d.stages, s)
	if err != nil {
		return err
	}
	run := newModeReport(s, len(d.Modes) > 1)
	if run.Missing != "" {
		d.stages = d.stages[:len(d.stages)-1]
		d.report.Runs = append(d.report.Runs, run)
		return s.close()
	}
	if err := s.ready(ctx); err != nil {
		return err
	}
	d.progress.say("%s: connecting", mode)
	run.Cells, err = s.connectAll(ctx)
	d.report.Runs = append(d.report.Runs, run)
	return err
}

// step makes one step on all stages at the same time.
func (d *show) step(ctx context.Context, st step) error {
	results := make([]StepResult, len(d.stages))
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range d.stages {
		group.Go(func() error {
			var err error
			results[i], err = s.run(ctx, st)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	next := 0
	for i := range d.report.Runs {
		if run := &d.report.Runs[i]; run.Missing == "" {
			run.Steps = append(run.Steps, results[next])
			next++
		}
	}
	return nil
}

// finish says what came of it, after everything is removed.
func (d *show) finish() error {
	if d.JSON {
		e := json.NewEncoder(d.Out)
		e.SetIndent("", "  ")
		if err := e.Encode(&d.report); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	n, wrong := d.report.connections(), d.report.wrong()
	if wrong > 0 {
		return fmt.Errorf("the demo found %d wrong results among %d connections, marked ✗; everything it made is removed", wrong, n)
	}
	d.print(fmt.Sprintf("\n%s in %.0f s. Everything the demo made is removed.\n",
		d.Style.green(fmt.Sprintf("%d connections, each as it has to be,", n)), time.Since(d.begin).Seconds()))
	return nil
}

func (d *show) close() error {
	group := errgroup.Group{}
	for _, s := range d.stages {
		group.Go(s.close)
	}
	return group.Wait()
}

func (d *show) print(text string) {
	if !d.JSON {
		fmt.Fprint(d.Out, text)
	}
}
