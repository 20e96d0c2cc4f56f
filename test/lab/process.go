package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
)

// outputKept is how much of a program's output is kept.
const outputKept = 1 << 20

// Process is a program that runs inside a host.
type Process struct {
	Pid int

	cmd  *exec.Cmd
	out  *tail
	done chan struct{}
	err  error // of the program; valid when done is closed
}

// Output returns the end of what the program has written to standard output and standard error so far.
func (p *Process) Output() string { return p.out.String() }

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %s: %w", p.cmd.Path, err)
	}
	return nil
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns when the program has ended, with an *exec.ExitError unless it ended well.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Kill ends the program the hard way and waits until it is gone. To kill an ended program is no error.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.cmd.Path, err)
	}
	<-p.done
	return nil
}

// spawner starts processes from one thread that lives as long as the world: the kernel ties the signal a
// child gets at its parent's death to the thread that made it.
type spawner struct {
	work chan func()
	once sync.Once
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func())}
	go func() {
		// Never unlocked: the thread has been in other namespaces and ends with this goroutine.
		runtime.LockOSThread()
		for f := range s.work {
			f()
		}
	}()
	return s
}

func (s *spawner) close() { s.once.Do(func() { close(s.work) }) }

// start starts cmd in the namespace and cgroup, in a session of its own so that a terminal's Ctrl-C does not
// reach it before its owner.
func (s *spawner) start(cmd *exec.Cmd, ns *namespace, cgroup string) (*Process, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	p := &Process{cmd: cmd, out: &tail{max: outputKept}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Pdeathsig: syscall.SIGKILL,
		UseCgroupFD: true, CgroupFD: int(dir.Fd()),
	}
	started := make(chan error)
	s.work <- func() {
		err := netns.Set(ns.handle)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p.Pid = cmd.Process.Pid
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// tail is a writer that keeps the end of what it was given.
type tail struct {
	max int

	mu  sync.Mutex
	buf []byte
}

// Write keeps b and forgets as much of the beginning as it must.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	// Twice the size before anything is moved, so that a byte is moved once on average.
	if len(t.buf) > 2*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
	}
	return len(b), nil
}

// String returns what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf[max(0, len(t.buf)-t.max):])
}
