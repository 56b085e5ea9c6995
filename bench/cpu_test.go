package bench

import (
	"os"
	"testing"
	"time"
)

func TestMeterSeesWorkOfThisProcess(t *testing.T) {
	m, err := startMeter([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	const work = 200 * time.Millisecond
	for end := time.Now().Add(work); time.Now().Before(end); {
	}
	u, err := m.stop()
	if err != nil {
		t.Fatal(err)
	}
	// A busy machine may have given less than was asked for.
	if u.daemons < work/8 || u.machine < u.daemons-20*time.Millisecond {
		t.Errorf("of %v: the process %v, the machine %v", u.elapsed, u.daemons, u.machine)
	}
	if _, err := startMeter([]int{1 << 30}); err == nil {
		t.Error("no error for a process that is not there")
	}
}
