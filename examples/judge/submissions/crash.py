input()
numbers = list(map(int, input().split()))
print(numbers[0] + sum(numbers[1:]))
