package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// The program is executed again with this variable set to become a part of a laboratory.
const (
	roleVariable = "LBPROXY_LAB_ROLE"
	roleWorker   = "worker"
	roleJanitor  = "janitor"
)

var mainCalled bool

// Main makes this process a worker if it was started as one, and then never returns. Call it before anything else in
// main or TestMain of a program that uses [New].
func Main() {
	mainCalled = true
	var err error
	switch os.Getenv(roleVariable) {
	case "":
		return
	case roleWorker:
		f := os.NewFile(3, "calls")
		err = newWorker(f).run(f)
	case roleJanitor:
		err = cleanAfter(os.Args[1], os.Stdin)
	default:
		err = fmt.Errorf("unknown role %q in %s", os.Getenv(roleVariable), roleVariable)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// worker is the process inside a host.
type worker struct {
	sending sync.Mutex
	enc     *json.Encoder

	mu      sync.Mutex
	servers map[server]io.Closer
	loads   map[uint64]*load
	last    uint64
}

func newWorker(w io.Writer) *worker {
	return &worker{enc: json.NewEncoder(w), servers: map[server]io.Closer{}, loads: map[uint64]*load{}}
}

// run serves calls until the other side is gone.
func (w *worker) run(r io.Reader) error {
	dec := json.NewDecoder(r)
	for {
		var c call
		if err := dec.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read call: %w", err)
		}
		go w.serve(c)
	}
}

func (w *worker) serve(c call) {
	result, err := w.handle(c)
	r := reply{ID: c.ID}
	if err == nil {
		r.Result, err = json.Marshal(result)
	}
	if err != nil {
		r.Error = err.Error()
	}
	w.sending.Lock()
	defer w.sending.Unlock()
	// Nobody is left to tell if this fails; run ends then.
	_ = w.enc.Encode(r)
}

func (w *worker) handle(c call) (any, error) {
	switch c.Op {
	case opServe:
		return with(c.Args, w.startServer)
	case opStopServe:
		return with(c.Args, w.stopServer)
	case opDial:
		return with(c.Args, func(a dialArgs) ([]Answer, error) { return dialTimes(a.Request, a.Times), nil })
	case opLoad:
		return with(c.Args, w.startLoad)
	case opLoadRead:
		return with(c.Args, w.readLoad)
	case opLoadStop:
		return with(c.Args, w.stopLoad)
	}
	return nil, fmt.Errorf("unknown operation %q", c.Op)
}

// with decodes the arguments of f and calls it.
func with[A, R any](raw json.RawMessage, f func(A) (R, error)) (any, error) {
	var a A
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, fmt.Errorf("decode arguments: %w", err)
	}
	return f(a)
}

// janitor is a process that outlives a killed world and removes what would stay.
type janitor struct {
	cmd *exec.Cmd
	end io.Closer
}

func startJanitor(name string) (*janitor, error) {
	cmd := exec.Command("/proc/self/exe", name)
	cmd.Args[0] = namePrefix + "janitor"
	cmd.Env = append(os.Environ(), roleVariable+"="+roleJanitor)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	end, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start janitor: %w", err)
	}
	return &janitor{cmd: cmd, end: end}, nil
}

// dismiss ends the janitor, its world being removed.
func (j *janitor) dismiss() error {
	defer j.end.Close()
	if err := j.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill janitor: %w", err)
	}
	// It has ended by the signal, if not by a fault that matters no more.
	_ = j.cmd.Wait()
	return nil
}

// cleanAfter waits until the process that holds the other end is gone and removes its world.
func cleanAfter(name string, held io.Reader) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	s, err := stateOf(name)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, held); err != nil {
		return fmt.Errorf("wait for laboratory: %w", err)
	}
	// The workers are about to end.
	for range 10 {
		if err = s.remove(); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}
