package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// client is a worker seen from the process that started it.
type client struct {
	proc *Process
	conn net.Conn

	sending sync.Mutex
	enc     *json.Encoder

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan reply
	err     error // why no more replies come
}

// newClient starts a worker. It does not wait for it: the first call does.
func newClient(s *spawner, ns *namespace, cgroup, name string) (*client, error) {
	conn, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("connect worker: %w", err)
	}
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe", name)
	cmd.Args[0] = namePrefix + "worker"
	cmd.Env = append(os.Environ(), roleVariable+"="+roleWorker)
	cmd.ExtraFiles = []*os.File{theirs}
	proc, err := s.start(cmd, ns, cgroup)
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &client{proc: proc, conn: conn, enc: json.NewEncoder(conn), waiting: map[uint64]chan reply{}}
	go c.receive()
	return c, nil
}

func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "worker")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "worker")
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// call asks and waits for the reply.
func (c *client) call(op string, args, result any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("encode %s: %w", op, err)
	}
	id, replies, err := c.expect()
	if err != nil {
		return err
	}
	c.sending.Lock()
	err = c.enc.Encode(call{ID: id, Op: op, Args: raw})
	c.sending.Unlock()
	if err != nil {
		// The reader sees the broken connection too, and knows what the worker had to say.
		c.conn.Close()
	}
	r, ok := <-replies
	switch {
	case !ok:
		return c.failure()
	case r.Error != "":
		return errors.New(r.Error)
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(r.Result, result); err != nil {
		return fmt.Errorf("decode reply to %s: %w", op, err)
	}
	return nil
}

func (c *client) expect() (uint64, <-chan reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.last++
	ch := make(chan reply, 1)
	c.waiting[c.last] = ch
	return c.last, ch, nil
}

func (c *client) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *client) receive() {
	dec := json.NewDecoder(c.conn)
	for {
		var r reply
		if err := dec.Decode(&r); err != nil {
			c.fail(err)
			return
		}
		c.mu.Lock()
		ch := c.waiting[r.ID]
		delete(c.waiting, r.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
}

func (c *client) fail(err error) {
	// A worker that is ending says why on its standard error, a moment after the connection broke.
	select {
	case <-c.proc.Done():
	case <-time.After(100 * time.Millisecond):
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = fmt.Errorf("talk to worker: %w %s", err, strings.TrimSpace(c.proc.Output()))
	for id, ch := range c.waiting {
		close(ch)
		delete(c.waiting, id)
	}
}

// close ends the worker.
func (c *client) close() error {
	c.conn.Close()
	return c.proc.Kill()
}
