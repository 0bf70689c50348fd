// A thread pool that processes numbered pieces of work together with the calling thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class ThreadPool {
  public:
    explicit ThreadPool(size_t threads) {
        for (size_t number = 1; number < threads; ++number)
            threads_.emplace_back([this, number] { serve(number); });
    }

    ~ThreadPool() {
        {
            std::lock_guard lock(mutex_);
            is_over_ = true;
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    size_t count() const { return threads_.size() + 1; }

    // Calls `work(thread, piece)` for every piece in any free thread; returns when all are done.
    void run(size_t pieces, const std::function<void(size_t, size_t)>& work) {
        next_ = 0;
        pieces_ = pieces;
        if (pieces > 1 && !threads_.empty()) {
            {
                std::lock_guard lock(mutex_);
                work_ = &work;
                ++round_;
                busy_ = threads_.size();
            }
            wake_.notify_all();
        }
        take(0, work);
        if (pieces > 1 && !threads_.empty()) {
            std::unique_lock lock(mutex_);
            done_.wait(lock, [this] { return busy_ == 0; });
        }
    }

  private:
    void take(size_t thread, const std::function<void(size_t, size_t)>& work) {
        for (size_t piece; (piece = next_.fetch_add(1)) < pieces_;) work(thread, piece);
    }

    void serve(size_t thread) {
        size_t seen = 0;
        while (true) {
            const std::function<void(size_t, size_t)>* work;
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return is_over_ || round_ != seen; });
                if (is_over_) return;
                seen = round_;
                work = work_;
            }
            take(thread, *work);
            std::lock_guard lock(mutex_);
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(size_t, size_t)>* work_ = nullptr;
    size_t round_ = 0, busy_ = 0, pieces_ = 0;
    std::atomic<size_t> next_ = 0;
    bool is_over_ = false;
};
