package pinger

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Ping is an echo request and, if it was answered, the time of the answer.
type Ping struct{ Sent, Answered time.Time }

// Record lists the requests in the order in which they were sent.
type Record []Ping

// Lost returns how many requests were not answered.
func (r Record) Lost() (n int) {
	for _, p := range r {
		if p.Answered.IsZero() {
			n++
		}
	}
	return n
}

// Silence returns the longest time between two answers, where the first and the last
// request count as answers.
func (r Record) Silence() time.Duration {
	if len(r) == 0 {
		return 0
	}
	at := []time.Time{r[0].Sent, r[len(r)-1].Sent}
	for _, p := range r {
		if !p.Answered.IsZero() {
			at = append(at, p.Answered)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	return longest(at)
}

// Pause returns the longest time between two requests. A silence of that length is caused
// by the machine that pings.
func (r Record) Pause() time.Duration {
	var at []time.Time
	for _, p := range r {
		at = append(at, p.Sent)
	}
	return longest(at)
}

func longest(at []time.Time) (d time.Duration) {
	for i := 1; i < len(at); i++ {
		d = max(d, at[i].Sub(at[i-1]))
	}
	return d
}

// String describes the record in a line.
func (r Record) String() string {
	return fmt.Sprintf("%d pings, %d lost, longest silence %.1f ms, longest pause between requests %.1f ms",
		len(r), r.Lost(), Milliseconds(r.Silence()), Milliseconds(r.Pause()))
}

// Milliseconds returns d in milliseconds.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// WriteFile writes a line for each request: its number, the time at which it was sent,
// and the time to its answer in microseconds, or "lost".
func (r Record) WriteFile(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	r.write(w)
	err = w.Flush()
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

func (r Record) write(w io.Writer) {
	for i, p := range r {
		took := "lost"
		if !p.Answered.IsZero() {
			took = fmt.Sprint(p.Answered.Sub(p.Sent).Microseconds())
		}
		fmt.Fprintln(w, i, p.Sent.UTC().Format("15:04:05.000000"), took)
	}
}
