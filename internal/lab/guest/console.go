package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// console is the serial console of a guest. Its methods may be called from
// several goroutines.
type console struct {
	in io.Writer // input to the console

	mu      sync.Mutex
	text    []byte        // everything that the guest has written
	changed chan struct{} // closed when text has grown or the guest has ended
	ended   bool
}

// errEnded means that the guest has ended, by a panic or on request.
var errEnded = errors.New("the guest exited")

// Write takes what the guest writes. The terminal driver puts a carriage return
// before each end of line.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, bytes.ReplaceAll(p, []byte("\r"), nil)...)
	c.wake()
	return len(p), nil
}

// end marks the end of the output.
func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.wake()
}

func (c *console) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// look returns what follows the first from bytes, and a channel that is
// closed when there is more.
func (c *console) look(from int) (text []byte, ended bool, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text[from:len(c.text):len(c.text)], c.ended, c.changed
}

// size returns how many bytes the guest has written.
func (c *console) size() int {
	text, _, _ := c.look(0)
	return len(text)
}

// await waits until found returns true for what follows the first from bytes.
// It returns an error if the guest ends or the time limit passes.
func (c *console) await(from int, limit time.Duration, found func(text []byte) bool) error {
	late := time.After(limit)
	for {
		text, ended, changed := c.look(from)
		switch {
		case found(text):
			return nil
		case ended:
			return errEnded
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("no result within %s", limit)
		}
	}
}
