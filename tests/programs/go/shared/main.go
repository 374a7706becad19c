// A small program for many schedules: goroutines on several threads use the same pages while their rights, their
// frames and the pages themselves are taken away, and the collector gives memory back. It writes what it counted.
package main

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	workers = 3
	pages   = 4
	page    = 4096
)

var (
	lock    sync.Mutex
	written int
	refused atomic.Int32
	wrong   atomic.Int32
	turns   [workers]atomic.Int64 // how often each worker went around since it was started
)

func main() {
	memory, err := syscall.Mmap(-1, 0, pages*page, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE)
	check(err)
	orders, done := [workers]chan byte{}, make(chan bool, workers)
	for n := range workers {
		orders[n] = make(chan byte)
		go work(n, memory, orders[n], done)
	}
	together := func(order byte) {
		for _, each := range orders {
			each <- order
		}
		for range workers {
			<-done
		}
	}
	together('w')
	protect(memory, syscall.PROT_READ)
	together('x')
	protect(memory, syscall.PROT_READ|syscall.PROT_WRITE)
	together('w')
	check(syscall.Madvise(memory, syscall.MADV_DONTNEED))
	together('z')

	// While all of them store to the last page, the others change.
	var stop atomic.Bool
	for n := range workers {
		go busy(n, memory[(pages-1)*page:], &stop, done)
	}
	for n := range workers {
		for turns[n].Load() == 0 {
			runtime.Gosched()
		}
	}
	first := memory[:(pages-1)*page]
	fill(first)
	protect(first, syscall.PROT_NONE)
	protect(first, syscall.PROT_READ)
	for n := range first {
		if n%page < workers && first[n] != byte(n/page+1) {
			wrong.Add(1)
		}
	}
	unmap(first)
	kept := grow(6)
	grow(9)
	debug.FreeOSMemory()
	stop.Store(true)
	for range workers {
		<-done
	}
	unmap(memory[(pages-1)*page:])
	say("written", written)
	say("refused", int(refused.Load()))
	say("wrong", int(wrong.Load()))
	say("kept", kept.count())
}

// What a worker does for each order: store in each page, be refused there, or find it empty.
func work(n int, memory []byte, orders chan byte, done chan bool) {
	runtime.LockOSThread()
	debug.SetPanicOnFault(true)
	for order := range orders {
		for at := n; at < len(memory); at += page {
			switch order {
			case 'w':
				memory[at]++
				lock.Lock()
				written++
				lock.Unlock()
			case 'x':
				refuse(&memory[at])
			case 'z':
				if memory[at] != 0 {
					wrong.Add(1)
				}
			}
		}
		done <- true
	}
}

func refuse(where *byte) {
	defer func() {
		if recover() != nil {
			refused.Add(1)
		}
	}()
	*where = 99
	wrong.Add(1)
}

// Store and load until it is told to stop.
func busy(n int, memory []byte, stop *atomic.Bool, done chan bool) {
	where := (*int64)(unsafe.Pointer(&memory[64*n]))
	for !stop.Load() {
		atomic.AddInt64(where, 1)
		if atomic.LoadInt64(where) != turns[n].Add(1) {
			wrong.Add(1)
		}
	}
	done <- true
}

func fill(memory []byte) {
	for n := range memory {
		memory[n] = byte(n/page + 1)
	}
}

type tree struct{ left, right *tree }

func grow(depth int) *tree {
	if depth == 0 {
		return &tree{}
	}
	return &tree{grow(depth - 1), grow(depth - 1)}
}

func (t *tree) count() int {
	if t.left == nil {
		return 1
	}
	return 1 + t.left.count() + t.right.count()
}

func protect(memory []byte, rights int) { check(syscall.Mprotect(memory, rights)) }

// Part of what was mapped: the library's own Munmap takes only all of it.
func unmap(memory []byte) {
	_, _, failed := syscall.Syscall(syscall.SYS_MUNMAP, uintptr(unsafe.Pointer(&memory[0])), uintptr(len(memory)), 0)
	if failed != 0 {
		check(failed)
	}
}

func say(what string, count int) {
	digits := ""
	for digits == "" || count > 0 {
		digits = string(rune('0'+count%10)) + digits
		count /= 10
	}
	_, err := syscall.Write(1, []byte(what+" "+digits+"\n"))
	check(err)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
